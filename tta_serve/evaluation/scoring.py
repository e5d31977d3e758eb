"""From an answer to its score: whether it is right, and how far."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Score:
    """exact: 1.0 for a right answer, else 0.0   graded: credit for what is right in it, in [0, 1]"""

    exact: float
    graded: float


def score(kind: str, want: str, parts: Sequence[str], answer: str) -> Score:
    """Score an answer by a kind of `KINDS`.

    Exact is equality with the wanted answer, blanks around both aside, and then graded is 1 too. An answer of kind `parts`
    is right if it has them all, whatever else it says.
    """
    if kind == "parts":
        share = sum(_has(answer, part) for part in parts) / len(parts)
        return Score(float(share == 1), share)
    if answer.strip() == want.strip():
        return Score(1.0, 1.0)
    return Score(0.0, KINDS[kind](want.strip(), answer.strip()))


def _nothing(want: str, answer: str) -> float:
    return 0.0


def _json(want: str, answer: str) -> float:
    """The share of right fields: equal values under equal names, of all names in either object."""
    wanted, got = _object(want), _object(answer)
    assert wanted is not None, f"the wanted answer is no JSON object: {want!r}"
    if got is None:
        return 0.0
    right = sum(name in got and _same(got[name], value) for name, value in wanted.items())
    return right / max(1, len(wanted.keys() | got.keys()))


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _same(got: Any, want: Any) -> bool:
    """Python holds True and 1 for equal; JSON does not."""
    return bool(got == want) and isinstance(got, bool) == isinstance(want, bool)


def _sql(want: str, answer: str) -> float:
    """F1 of words and signs, in any case."""
    return _f1(*(re.findall(r"\w+|[^\w\s]", text.casefold()) for text in (want, answer)))


def _tokens(want: str, answer: str) -> float:
    """F1 of what stands between blanks."""
    return _f1(want.split(), answer.split())


def _f1(want: Sequence[str], got: Sequence[str]) -> float:
    """2 |want & got| / (|want| + |got|), of multisets; the harmonic mean of precision and recall."""
    return 2 * (Counter(want) & Counter(got)).total() / max(1, len(want) + len(got))


def _lines(want: str, answer: str) -> float:
    """The share of lines that are right where they stand, of as many as the longer of the two has."""
    wanted, got = ([line.strip() for line in text.splitlines()] for text in (want, answer))
    return sum(w == g for w, g in zip(wanted, got, strict=False)) / max(1, len(wanted), len(got))


def _has(answer: str, part: str) -> bool:
    """Whether a part occurs, and not inside of a longer word or number."""
    before, after = (r"(?<!\w)" if part[:1].isalnum() else ""), (r"(?!\w|\.\d)" if part[-1:].isalnum() else "")
    return re.search(before + re.escape(part) + after, answer) is not None


KINDS: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {"exact": _nothing, "json": _json, "sql": _sql, "lines": _lines, "tokens": _tokens, "parts": _nothing}
)
