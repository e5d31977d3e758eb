"""How a short answer is cut out of a long one and compared, as lm-evaluation-harness does.

The words and their meaning are of https://github.com/EleutherAI/lm-evaluation-harness, version 0.4:
`lm_eval/filters/extraction.py` and `exact_match` in `lm_eval/api/metrics.py`.
"""

from __future__ import annotations

import re
import string

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

DEFAULT_TOKENS = 256
"""The most tokens of an answer to a task that names no other bound."""
_STRICT = ConfigDict(extra="forbid", strict=True)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)


@checked(frozen=True, config=_STRICT)
class ExtractionStep:
    """One step from what was said to the answer in it."""

    pattern: str | None = None
    """The regular expression that is looked for; None to take off the blanks around the text."""
    group_select: int = 0
    """Which of the places that match is taken, from the end if negative."""
    fallback: str = "[invalid]"
    """The answer where nothing matches."""

    def __post_init__(self) -> None:
        if self.pattern is not None:
            check_pattern(self.pattern)

    def apply(self, text: str) -> str:
        """Return what is taken of a text: of a match its first group that is not empty, if any."""
        if self.pattern is None:
            return text.strip()
        found = re.findall(self.pattern, text)
        if not -len(found) <= self.group_select < len(found):
            return self.fallback
        match = found[self.group_select]
        if isinstance(match, tuple):
            match = next((group for group in match if group), self.fallback)
        return str(match).strip()


@checked(frozen=True, config=_STRICT)
class MatchRule:
    """How an answer is asked for, cut out and compared."""

    most_tokens: int = Field(default=DEFAULT_TOKENS, ge=1)
    """The most tokens of an answer."""
    stops: tuple[str, ...] = ()
    """Texts before which an answer ends."""
    steps: tuple[ExtractionStep, ...] = ()
    """What cuts the answer out, one step after the other."""
    alternatives: tuple[str, ...] = ()
    """What is right as well as the answer that the question wants."""
    regexes_to_ignore: tuple[str, ...] = ()
    """What is taken out of both sides before they are compared."""
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ValueError("an answer cannot end before an empty text")
        for pattern in self.regexes_to_ignore:
            check_pattern(pattern)

    def accepts(self, want: str, answer: str) -> bool:
        """Return whether what was said has the wanted answer, or an alternative to it."""
        got = self._normalize(self.extract(answer))
        return any(got == self._normalize(right) for right in (want, *self.alternatives))

    def extract(self, answer: str) -> str:
        """Return the answer in what was said."""
        for stop in self.stops:
            answer = answer.partition(stop)[0]
        for step in self.steps:
            answer = step.apply(answer)
        return answer

    def _normalize(self, text: str) -> str:
        for pattern in self.regexes_to_ignore:
            text = re.sub(pattern, "", text)
        if self.ignore_case:
            text = text.lower()
        if self.ignore_punctuation:
            text = text.translate(_PUNCTUATION)
        return text.translate(_DIGITS) if self.ignore_numbers else text


def check_pattern(pattern: str) -> None:
    """Raise ValueError for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
