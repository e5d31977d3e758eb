"""What came of an evaluation, before any figure is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.coefficient import Json, from_json, numbers_of
from tta_serve.evaluation.arms import EvaluatedArm
from tta_serve.evaluation.merge_variants import TunedMerge
from tta_serve.evaluation.questions import TWO_SKILLS, Question, Suite
from tta_serve.evaluation.scoring import Score

Segments = Sequence[Mapping[str, Json]]


@dataclass(frozen=True)
class PolicyDecision:
    """What a policy does with a prompt, as `POST /admin/policies/explain` says it."""

    experts: Mapping[str, Json]
    """The coefficients of the mix."""
    reason: str
    """The policy's own words."""
    fallback: str | None
    """The policy that answered in its place; None if it did itself."""
    router_ms: float
    """How long the decision took, ms."""
    passes: int
    """How many rows the policy asked the engine for."""
    then: Segments = ()
    """The coefficients of the mixes that answer after it."""


@dataclass(frozen=True)
class ArmAnswer:
    """One arm's answer to one question."""

    experts: Mapping[str, Json]
    """The coefficients of the mix."""
    answer: str | None = None
    """The text; None where it was not asked for, as it is not judged."""
    score: Score | None = None
    """None where the answer is not judged."""
    then: Segments = ()
    """The coefficients of the mixes that answer after it."""

    @property
    def choice(self) -> str | None:
        """The expert with the most weight; None for the base."""
        return max(self.experts, key=lambda name: _average_size(self.experts[name]), default=None)

    @property
    def share(self) -> float:
        """The share of the mix that the choice has; 0 for the base."""
        sizes = [_average_size(given) for given in self.experts.values()]
        return max(sizes) / sum(sizes) if any(sizes) else 0.0

    def right(self, question: Question) -> bool:
        """Return whether the choice is the expert that a question is for.

        Where it is for several, whether all of them are in the mix, or answer after it.
        """
        if len(question.tasks) > 1:
            used = {name for own in (self.experts, *self.then) for name in own}
            return used >= set(question.tasks)
        return self.choice == question.task


@dataclass(frozen=True)
class LiveTraffic:
    """Mixed traffic through the running server."""

    asked: int
    """The number of requests."""
    differ: int
    """The number of answers other than those to the same prompt and mix alone."""
    hits: float
    """Tokens found in the prefix cache."""
    queries: float
    """Tokens looked up in it, those of the policy's probes among them."""
    router_ms: tuple[float, ...]
    """How long each decision took while others were answered, ms."""


@dataclass
class ArmRecord:
    """All that is known of one arm."""

    arm: EvaluatedArm
    answers: dict[int, ArmAnswer] = field(default_factory=dict)
    """Its answers by the question's number."""
    times: list[float] = field(default_factory=list)
    """How long each decision took that was made alone, with nothing remembered, ms."""
    passes: list[int] = field(default_factory=list)
    """How many rows of the engine each of those took."""
    kl: dict[int, float] = field(default_factory=dict)
    """The divergence from the base by the question's number, nats for each token."""
    live: LiveTraffic | None = None
    """Its traffic, if it answered any."""
    fallbacks: int = 0
    """How many decisions another policy had to make."""

    def scores(self, numbers: Iterable[int]) -> dict[int, Score]:
        """Return the scores of those of these questions that it was asked and that are judged."""
        found = ((n, self.answers[n].score) for n in numbers if n in self.answers)
        return {n: score for n, score in found if score is not None}


@dataclass
class Results:
    """All that came of an evaluation."""

    suite: Suite
    default_policy: str
    """The policy that stands for the server."""
    seed: int
    """Of the bootstrap's resamples."""
    records: dict[str, ArmRecord] = field(default_factory=dict)
    """The arms by name."""
    about: dict[str, Any] = field(default_factory=dict)
    """How it was run: date, machine and the like."""
    kept: dict[str, float] = field(default_factory=dict)
    """By merge, the share of its energy that is served."""
    scales: dict[str, float] = field(default_factory=dict)
    """By merge, the coefficient at which it is served, where that was tuned."""
    densities: dict[str, float] = field(default_factory=dict)
    """By merge, the option `density` of its method, where that was tuned."""
    skipped: dict[str, str] = field(default_factory=dict)
    """By what was left out, why."""

    def note_tuned(self, merges: Iterable[TunedMerge]) -> None:
        """Note with which scale and density merges are served."""
        for merge in merges:
            self.scales[merge.arm] = merge.scale
            if merge.variant.density is not None:
                self.densities[merge.arm] = merge.variant.density

    def score_better_of_two(self) -> dict[int, Score]:
        """Return the scores of the better expert alone on questions of two skills.

        Of each pair of skills that is the one with the higher graded mean. Which is better is seen
        from the scores themselves, so it is as good as a router that always takes one can be.
        """
        found: dict[int, Score] = {}
        for tasks, own in _group_by_skills(self.suite).items():
            records = [
                self.records[f"expert {name}"] for name in tasks if f"expert {name}" in self.records
            ]
            alone: list[Mapping[int, Score]] = [record.scores(own) for record in records]
            if alone:
                better = max(alone, key=_average_graded)
                found |= better
        return found


def _average_graded(scores: Mapping[int, Score]) -> float:
    return sum(score.graded for score in scores.values()) / max(1, len(scores))


def _group_by_skills(suite: Suite) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for number in suite.groups.get(TWO_SKILLS, ()):
        found.setdefault(suite.questions[number].tasks, []).append(number)
    return found


def _average_size(coefficient: Json) -> float:
    sizes = [abs(number) for number in numbers_of(from_json(coefficient))]
    return sum(sizes) / len(sizes)
