"""Say in one sentence what pydantic found wrong with a body.

The sentence is of the field, and of the alternative, that the client meant.

Where a field may have several forms pydantic complains of each. The form that was meant is the one
whose tags (`role`, `type`) fit, else the one that the value has the kind of, else the one with the
fewest complaints.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_TAGS = ("literal_error", "union_tag_invalid", "union_tag_not_found", "enum")
_MOST_TOLD = 300
_SHOULD = "Input should be "

Complaint = Mapping[str, Any]


def explain_validation(errors: Sequence[Complaint], body: Any = None) -> tuple[str, str | None]:
    """What is wrong, and the name of the field.

    Args:
        body: The JSON that was refused, None if it is not known.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}", None
    where = [part for part in first["loc"][:1] if part in ("body", "query", "path", "header")]
    located = [_Located(error, error["loc"][len(where) :], body) for error in errors]
    meant = _meant([one for one in located if one.place[:1] == located[0].place[:1]], 0)
    place = ".".join(map(str, meant[0].place))
    return (
        f"{place or 'body'}: {_joined([one.message for one in meant])[:_MOST_TOLD]}",
        place or None,
    )


def _joined(messages: Sequence[str]) -> str:
    """Several complaints of one value as one: Input should be a string or a list."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.removeprefix(_SHOULD) for other in others)])


class _Located:
    """A complaint, and where it is.

    Attributes:
        place: Keys and indices in the body.
        forms: Of unions, on the way there, with depths.
    """

    def __init__(self, error: Complaint, loc: Sequence[str | int], body: Any) -> None:
        self.kind = str(error["type"])
        self.message = str(error["msg"]).removeprefix("Value error, ")
        place: list[str | int] = []
        forms: list[tuple[int, str]] = []
        for i, part in enumerate(loc):
            if _has(body, part):
                place.append(part)
                body = body[part]
            elif (i == len(loc) - 1 and self.kind in ("missing", "extra_forbidden")) or (
                body is None and not forms
            ):
                place.append(part)
            else:
                forms.append((len(place), str(part)))
        self.place = place
        self.forms = forms


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and -len(value) <= part < len(value)


def _meant(errors: list[_Located], level: int) -> list[_Located]:
    """The complaints of the form that was meant; several if the value has the kind of none."""
    by_form, own = _by_form(errors, level)
    if own:
        return own[:1]
    costs = {form: _cost(form, group, level) for form, group in by_form.items()}
    best = min(costs.values())
    told = [
        one
        for form, group in by_form.items()
        if costs[form] == best
        for one in _meant(group, level + 1)
    ]
    return [one for one in told if one.place == told[0].place]


def _by_form(
    errors: list[_Located], level: int
) -> tuple[dict[tuple[int, str], list[_Located]], list[_Located]]:
    """By the form of a union at this depth, and those that are of none."""
    by_form: dict[tuple[int, str], list[_Located]] = {}
    own = [one for one in errors if level >= len(one.forms)]
    formed = [one for one in errors if level < len(one.forms)]
    for one in formed:  # of the first value that is wrong
        depth = formed[0].forms[level][0]
        if one.forms[level][0] == depth and one.place[:depth] == formed[0].place[:depth]:
            by_form.setdefault(one.forms[level], []).append(one)
    return by_form, own


def _cost(form: tuple[int, str], group: list[_Located], level: int) -> tuple[int, int, int]:
    """Return how badly a form fits the value, the least first.

    What counts is whether the value is of another kind; then, of the form in it that fits best, the
    tags that do not, and the complaints.
    """
    other = all(
        len(one.place) == form[0] and one.kind.endswith(("_type", "_parsing")) for one in group
    )
    inner = _cheapest(group, level + 1)
    tags = sum(one.kind in _TAGS for one in inner)
    return int(other and len(group[0].forms) == level + 1), tags, len(inner)


def _cheapest(errors: list[_Located], level: int) -> list[_Located]:
    by_form, own = _by_form(errors, level)
    if not by_form:
        return own
    form = min(by_form, key=lambda form: _cost(form, by_form[form], level))
    return own + _cheapest(by_form[form], level + 1)
