"""Which arm is asked which questions."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tta_serve.evaluation.arms import EvaluatedArm
from tta_serve.evaluation.questions import (
    BENCHMARKS,
    CORRUPTED,
    EVERYDAY,
    MIXED,
    PARAPHRASED,
    REMOVED,
    TWO_SKILLS,
    Suite,
)

MEDIUM = f"{CORRUPTED}:medium"
"""The corrupted questions that headlines are made of."""
_FEW = frozenset({MIXED, PARAPHRASED, TWO_SKILLS, EVERYDAY, BENCHMARKS})
_FEWEST = frozenset({MIXED, TWO_SKILLS, BENCHMARKS})


@dataclass(frozen=True)
class Plan:
    """A suite, and how much of it is asked."""

    suite: Suite
    default: str
    """The policy that stands for the server: it, the base and the oracle are asked everything, but
    the oracle no benchmarks, for which no expert is known to be right."""
    quick: bool
    """Whether experts, static merges and entries are asked mixed prompts, those of two skills and
    benchmarks alone, and nobody is asked corrupted ones but those of medium strength."""
    seed: int
    """Of the order of traffic and of the base's answers."""
    most: int | None
    """How many questions of a slice each of the other arms is asked, None for all; those of two
    skills are always asked whole."""
    timed: int
    """How many decisions of each policy are timed."""
    live: tuple[str, ...]
    """The names of the arms that answer traffic, in this order."""

    def list_numbers(self, arm: EvaluatedArm) -> list[int]:
        """List the numbers of an arm's questions while the library is whole."""
        asked = (own for group, own in self.suite.groups.items() if self._asks(arm, group))
        return [number for own in asked for number in self.thin(arm, own)]

    def _asks(self, arm: EvaluatedArm, group: str) -> bool:
        """Whether an arm is asked anything of a group."""
        name = self._slice(self.suite.groups[group])
        if name == REMOVED:
            return arm.kind == "base"
        if name == BENCHMARKS and arm.kind == "oracle":
            return False
        if self.quick and name == CORRUPTED and group != MEDIUM:
            return False
        if arm.kind == "base" or arm.pinned is None:
            return True
        if self.quick:
            return name in _FEWEST
        return arm.kind == "expert" or name in _FEW

    def thin(self, arm: EvaluatedArm, numbers: Sequence[int]) -> list[int]:
        """Return those of a group's questions that an arm is asked."""
        if self.most is None or self._asked_all(arm) or self._slice(numbers) == TWO_SKILLS:
            return list(numbers)
        return self.suite.thin(numbers, self.most)

    def group_removed(self) -> dict[str, list[int]]:
        """Group the questions of the slice without the right expert by that expert."""
        found = defaultdict[str, list[int]](list)
        for number in self.suite.groups.get(REMOVED, ()):
            found[self.suite.questions[number].tasks[0]].append(number)
        return dict(found)

    def shuffle_traffic(self) -> list[int]:
        """Return the questions of mixed traffic in random order."""
        return self._shuffle(self.suite.groups.get(MIXED, ()))

    def list_timed(self) -> list[int]:
        """List the questions that decisions are timed on, of mixed traffic if there is any."""
        own = self.shuffle_traffic() or self._shuffle(range(len(self.suite.questions)))
        return own[: self.timed]

    def _shuffle(self, numbers: Iterable[int]) -> list[int]:
        found = list(numbers)
        random.Random(self.seed).shuffle(found)
        return found

    def _asked_all(self, arm: EvaluatedArm) -> bool:
        return arm.kind in ("base", "oracle") or arm.name == self.default

    def _slice(self, numbers: Sequence[int]) -> str:
        return self.suite.questions[numbers[0]].slice


def limit_tokens(suite: Suite, count: Callable[[str], int]) -> list[int]:
    """Return the most tokens of an answer to each question.

    They are those of the longest answer that is wanted of its experts, and four more: an answer
    that is not over by then is wrong. One that is searched for parts, or worked out, may be half as
    long again. A rule says itself how long an answer may be.

    Args:
        suite: The questions.
        count: Returns how many tokens a text has.
    """
    longest = defaultdict[str | None, int](int)
    for question in (one for one in suite.questions if one.rule is None):
        room = 1.5 if question.kind in ("parts", "worked") else 1.0
        longest[question.task] = max(
            longest[question.task], math.ceil(room * count(question.want or "")) + 4
        )
    return [
        question.rule.most_tokens if question.rule else longest[question.task]
        for question in suite.questions
    ]
