"""Which arm is asked which questions."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tta_serve.evaluation.arms import EvaluatedArm, Kind
from tta_serve.evaluation.questions import (
    BENCHMARKS,
    CORRUPTED,
    EVERYDAY,
    MIXED,
    PARAPHRASED,
    REMOVED,
    TWO_SKILLS,
    Question,
    Suite,
)

MEDIUM = f"{CORRUPTED}:medium"
"""The corrupted questions that headlines are made of."""
_FEW = frozenset({MIXED, PARAPHRASED, TWO_SKILLS, EVERYDAY, BENCHMARKS})
_FEWEST = frozenset({MIXED, TWO_SKILLS, BENCHMARKS})
# Who is asked all of a slice beside the default policy and the oracle.
_WHOLE: Mapping[str, tuple[Kind, ...]] = {
    TWO_SKILLS: ("expert", "learned", "control", "policy"),
    BENCHMARKS: ("base",),
}
# Who mixes the same whatever the prompt: a few questions tell them from the others.
_STEADY: tuple[Kind, ...] = ("base", "expert", "static", "merge")
# How many tokens more than the wanted one an answer may have.
_MORE = 4
_WORKED = 24


@dataclass(frozen=True)
class Plan:
    """A suite, and how much of it is asked."""

    suite: Suite
    default: str
    """The policy that stands for the server: it and the oracle are asked everything, but the
    oracle no benchmarks, for which no expert is known to be right."""
    quick: bool
    """Whether experts, static mixes, merges and entries are asked mixed prompts, those of two
    skills and benchmarks alone, and nobody is asked corrupted ones but those of medium strength,
    nor any while their expert is gone. Of tuned merges the scale alone is tuned."""
    seed: int
    """Of the order of traffic and of the base's answers."""
    most: int | None
    """How many questions of a slice each of the others is asked, None for all; the base, experts,
    static mixes and merges half as many, but of two skills and benchmarks. Experts and policies are
    always asked all of two skills, and the base all benchmarks."""
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
            return arm.kind == "base" and not self.quick
        if name == BENCHMARKS and arm.kind == "oracle":
            return False
        if self.quick and name == CORRUPTED and group != MEDIUM:
            return False
        if arm.kind == "base" or (arm.pinned is None and arm.kind != "static"):
            return True
        if self.quick:
            return name in _FEWEST
        return arm.kind == "expert" or name in _FEW

    def thin(self, arm: EvaluatedArm, numbers: Sequence[int]) -> list[int]:
        """Return those of a group's questions that an arm is asked."""
        name = self._slice(numbers)
        whole = arm.kind in _WHOLE.get(name, ()) or arm.kind == "oracle"
        if self.most is None or whole or arm.name == self.default:
            return list(numbers)
        half = arm.kind in _STEADY and name not in _WHOLE
        return self.suite.thin(numbers, self.most // 2 if half else self.most)

    def group_removed(self) -> dict[str, list[int]]:
        """Group the questions of the slice without the right expert by that expert."""
        found = defaultdict[str, list[int]](list)
        for number in () if self.quick else self.suite.groups.get(REMOVED, ()):
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

    def _slice(self, numbers: Sequence[int]) -> str:
        return self.suite.questions[numbers[0]].slice


def limit_tokens(suite: Suite, count: Callable[[str], int]) -> list[int]:
    """Return the most tokens of an answer to each question.

    They are those of the wanted answer, and a few more: an answer that is not over by then is
    wrong. One that is searched for parts, or worked out, may be twice as long, and longer by some
    steps of working. A rule says itself how long an answer may be.

    Args:
        suite: The questions.
        count: Returns how many tokens a text has.
    """
    return [_limit(question, count) for question in suite.questions]


def _limit(question: Question, count: Callable[[str], int]) -> int:
    if question.rule:
        return question.rule.most_tokens
    wanted = count(question.want or "")
    if question.kind in ("parts", "worked"):
        return 2 * wanted + _WORKED
    return wanted + _MORE
