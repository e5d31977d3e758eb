"""What came of an evaluation, before any figure is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.coefficient import Json, from_json, numbers
from tta_serve.evaluation.arms import Arm
from tta_serve.evaluation.questions import TWO_SKILLS, Question, Suite
from tta_serve.evaluation.scoring import Score


@dataclass(frozen=True)
class Decided:
    """What a policy does with a prompt, as `POST /admin/policies/explain` says it.

    passes: rows that the policy asked the engine for   router_ms: what it took   fallback: what answered in its place
    """

    experts: Mapping[str, Json]
    reason: str
    fallback: str | None
    router_ms: float
    passes: int


@dataclass(frozen=True)
class Cell:
    """One arm's answer to one question. experts: the mix   answer, score: None where the answer is not judged"""

    experts: Mapping[str, Json]
    answer: str | None = None
    score: Score | None = None

    @property
    def choice(self) -> str | None:
        """The expert with the most weight, None for the base."""
        return max(self.experts, key=lambda name: _size(self.experts[name]), default=None)

    def right(self, question: Question) -> bool:
        """Whether it is the expert that a question is for; all of them, where it is for several."""
        if len(question.tasks) > 1:
            return set(question.tasks) <= self.experts.keys()
        return self.choice == question.task


@dataclass(frozen=True)
class Live:
    """Mixed traffic through the running server.

    asked: requests   differ: answers other than those to the same prompt and mix alone   hits, queries: tokens looked up in
    the prefix cache and found, the policy's probes among them   router_ms: of each request, while others were answered
    """

    asked: int
    differ: int
    hits: float
    queries: float
    router_ms: tuple[float, ...]


@dataclass
class Record:
    """All of one arm. cells: by the question's number   times, passes: of decisions one at a time, nothing remembered

    kl: by the question's number, nats for each token   fallbacks: decisions that another policy had to make
    """

    arm: Arm
    cells: dict[int, Cell] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    kl: dict[int, float] = field(default_factory=dict)
    live: Live | None = None
    fallbacks: int = 0

    def scores(self, numbers: Iterable[int]) -> dict[int, Score]:
        """Those of these questions that it was asked and that are judged."""
        found = ((n, self.cells[n].score) for n in numbers if n in self.cells)
        return {n: score for n, score in found if score is not None}


@dataclass
class Results:
    """about: how it was run   kept: by merge, the share of its energy that is served   skipped: what was left out, and why"""

    suite: Suite
    default_policy: str
    seed: int
    records: dict[str, Record] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def better_of_two(self) -> dict[int, Score]:
        """The better expert alone on questions of two skills: of each pair of skills the one with the higher graded mean.

        Which is better is seen from the scores themselves, so it is as good as a router that always takes one can be.
        """
        found: dict[int, Score] = {}
        for tasks, own in _pairs(self.suite).items():
            records = [self.records[f"expert {name}"] for name in tasks if f"expert {name}" in self.records]
            alone: list[Mapping[int, Score]] = [record.scores(own) for record in records]
            if alone:
                better = max(alone, key=_graded)
                found |= better
        return found


def _graded(scores: Mapping[int, Score]) -> float:
    return sum(score.graded for score in scores.values()) / max(1, len(scores))


def _pairs(suite: Suite) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for number in suite.groups.get(TWO_SKILLS, ()):
        found.setdefault(suite.questions[number].tasks, []).append(number)
    return found


def _size(coefficient: Json) -> float:
    sizes = [abs(number) for number in numbers(from_json(coefficient))]
    return sum(sizes) / len(sizes)
