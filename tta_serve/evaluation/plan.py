"""Which arm is asked which questions."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tta_serve.evaluation.arms import Arm
from tta_serve.evaluation.questions import EVERYDAY, MIXED, PARAPHRASED, REMOVED, TWO_SKILLS, Suite

_FEW = frozenset({MIXED, PARAPHRASED, TWO_SKILLS, EVERYDAY})


@dataclass(frozen=True)
class Plan:
    """A suite, and how much of it is asked.

    default: the policy that is judged for the whole: it, the base and the oracle are asked everything
    quick: experts are asked no more than static merges and entries are: mixed, paraphrased, two skills and everyday prompts
    most: questions of a slice for each of the others, None for all; two skills are always asked whole
    timed: decisions of each policy that are timed   live: arms that answer traffic, in this order
    """

    suite: Suite
    default: str
    quick: bool
    seed: int
    most: int | None
    timed: int
    live: tuple[str, ...]

    def numbers(self, arm: Arm) -> list[int]:
        """The numbers of an arm's questions while the library is whole."""
        whole = arm.kind == "base" or arm.pinned is None or (arm.kind == "expert" and not self.quick)
        groups = ((self._slice(own), own) for own in self.suite.groups.values())
        asked = (own for name, own in groups if (whole or name in _FEW) and (name != REMOVED or arm.kind == "base"))
        return [number for own in asked for number in self.thinned(arm, own)]

    def thinned(self, arm: Arm, numbers: Sequence[int]) -> list[int]:
        """Those of a group's questions that an arm is asked."""
        if self.most is None or self._asked_all(arm) or self._slice(numbers) == TWO_SKILLS:
            return list(numbers)
        return self.suite.thinned(numbers, self.most)

    def removed(self) -> dict[str, list[int]]:
        """The questions of the slice without the right expert, by that expert."""
        found = defaultdict[str, list[int]](list)
        for number in self.suite.groups.get(REMOVED, ()):
            found[self.suite.questions[number].tasks[0]].append(number)
        return dict(found)

    def traffic(self) -> list[int]:
        """Mixed traffic, in random order."""
        numbers = list(self.suite.groups.get(MIXED, ()))
        random.Random(self.seed).shuffle(numbers)
        return numbers

    def _asked_all(self, arm: Arm) -> bool:
        return arm.kind in ("base", "oracle") or arm.name == self.default

    def _slice(self, numbers: Sequence[int]) -> str:
        return self.suite.questions[numbers[0]].slice


def limits(suite: Suite, count: Callable[[str], int]) -> list[int]:
    """The most tokens of an answer to each question: those of the longest that is wanted of its experts, and four.

    An answer that is not over by then is wrong. One that is searched for parts may be half as long again.

    count: the tokens of a text
    """
    longest = defaultdict[str | None, int](int)
    for question in suite.questions:
        room = 1.5 if question.kind == "parts" else 1.0
        longest[question.task] = max(longest[question.task], math.ceil(room * count(question.want or "")) + 4)
    return [longest[question.task] for question in suite.questions]
