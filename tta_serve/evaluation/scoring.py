"""From an answer to its score: whether it is right, and how far."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tta_serve.evaluation.match_rules import MatchRule


@dataclass(frozen=True)
class Score:
    """What an answer is worth."""

    exact: float
    """1.0 for a right answer, else 0.0."""
    graded: float
    """The credit for what is right in it, in [0, 1]."""


def score(
    kind: str, want: str, parts: Sequence[str], answer: str, rule: MatchRule | None = None
) -> Score:
    """Score an answer by a kind of `KINDS`.

    Exact is equality with the wanted answer, blanks around both aside, and then graded is 1 too. An
    answer of kind `worked` is right if its last line is, for there is more than one way to work
    something out, one of kind `parts` if it has them all, whatever else it says, and one of kind
    `match` if its rule accepts it.

    Args:
        kind: How the answer is graded.
        want: The ideal answer.
        parts: What the kind `parts` looks for.
        answer: The answer.
        rule: What the kind `match` compares by.
    """
    if kind == "match":
        assert rule is not None, "the kind match wants a rule"
        right = float(rule.accepts(want, answer))
        return Score(right, right)
    if kind == "parts":
        share = sum(_contains(answer, part) for part in parts) / len(parts)
        return Score(float(share == 1), share)
    want, answer = want.strip(), answer.strip()
    if answer == want or (kind == "worked" and last_line(answer) == last_line(want)):
        return Score(1.0, 1.0)
    return Score(0.0, KINDS[kind](want, answer))


def last_line(answer: str) -> str:
    """Return what an answer comes to that is worked out in lines."""
    return answer.strip().rpartition("\n")[2].strip()


def _grade_nothing(want: str, answer: str) -> float:
    return 0.0


def _grade_json(want: str, answer: str) -> float:
    """Return the share of right fields, which have equal values under equal names.

    It is of all names in either object.
    """
    wanted, got = _read_object(want), _read_object(answer)
    assert wanted is not None, f"the wanted answer is no JSON object: {want!r}"
    if got is None:
        return 0.0
    right = sum(name in got and _is_same(got[name], value) for name, value in wanted.items())
    return right / max(1, len(wanted.keys() | got.keys()))


def _read_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_same(got: Any, want: Any) -> bool:
    """Return whether two values are equal in JSON, where true and 1 are not as in Python."""
    return bool(got == want) and isinstance(got, bool) == isinstance(want, bool)


def _grade_sql(want: str, answer: str) -> float:
    """Return the F1 of words and signs, in any case."""
    return _compute_f1(*(re.findall(r"\w+|[^\w\s]", text.casefold()) for text in (want, answer)))


def _grade_tokens(want: str, answer: str) -> float:
    """Return the F1 of what stands between blanks."""
    return _compute_f1(want.split(), answer.split())


def _compute_f1(want: Sequence[str], got: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall: 2 |want & got| / (|want| + |got|).

    They are multisets.
    """
    return 2 * (Counter(want) & Counter(got)).total() / max(1, len(want) + len(got))


def _grade_lines(want: str, answer: str) -> float:
    """Return the share of lines that are right where they stand.

    It is of as many lines as the longer of the two has.
    """
    wanted, got = ([line.strip() for line in text.splitlines()] for text in (want, answer))
    return sum(w == g for w, g in zip(wanted, got, strict=False)) / max(1, len(wanted), len(got))


def _contains(answer: str, part: str) -> bool:
    """Return whether a part occurs, and not inside of a longer word or number."""
    before = r"(?<!\w)" if part[:1].isalnum() else ""
    after = r"(?!\w|\.\d)" if part[-1:].isalnum() else ""
    return re.search(before + re.escape(part) + after, answer) is not None


KINDS: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {
        "exact": _grade_nothing,
        "json": _grade_json,
        "sql": _grade_sql,
        "lines": _grade_lines,
        "worked": _grade_lines,
        "tokens": _grade_tokens,
        "parts": _grade_nothing,
        "match": _grade_nothing,
    }
)
"""How an answer that is not equal to the wanted one is graded, by kind.

exact    not at all
json     the share of right fields of an object
sql      the F1 of words and signs
lines    the share of right lines
worked   likewise
tokens   the F1 of what stands between blanks
parts    the share of the parts that it contains
match    not at all; what is compared is cut out first
"""
