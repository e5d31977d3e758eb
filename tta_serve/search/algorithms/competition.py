"""M2N2: merges compete for questions, and mate with whoever answers what they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from tta_serve.search.searcher import (
    Algorithm,
    Array,
    Candidate,
    Generations,
    ScoredCandidate,
    SearchTask,
    choose_best,
)
from tta_serve.search.space import Point, SearchSpace

_EPSILON = 1e-3


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Competition(Algorithm):
    """An archive whose members share what each question gives.

    Fitness_i = sum_j s_ij / (sum_k s_kj)^alpha over questions j: a question that few can answer is
    worth more to those who do. A parent is drawn by its fitness, its mate by attraction, sum_j
    max(0, s_bj - s_aj) / (sum_k s_kj)^alpha. Their child has the coordinates up to a point that is
    drawn mixed in one ratio, the others in the opposite one, and small changes.
    """

    source: ClassVar[str] = "Abrantes, Lange & Tang 2025, arXiv 2508.16204 (M2N2)"

    archive: Annotated[int, Field(ge=4)] = 24
    """How many members there are."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """How much members compete; 0 for the plain mean score."""
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The standard deviation of changes, as a share of the way between the bounds."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield children, as many as are scored at once, without end."""
        rng, members = np.random.default_rng(task.seed), list(task.known)
        while True:
            worth = self._share(members)
            children = [
                self._make_child(task.space, members, worth, rng) for _ in range(task.batch)
            ]
            scored = yield [Candidate(child) for child in children]
            together = list({one.point: one for one in (*members, *scored)}.values())
            fitness = self._share(together).sum(1)
            ranked = [together[i] for i in np.argsort(-fitness, kind="stable")]
            best = choose_best(together)
            members = [best, *(one for one in ranked if one is not best)][: self.archive]

    def _share(self, members: Sequence[ScoredCandidate]) -> Array:
        """Return what each question gives to each member, [members, questions]."""
        values = np.stack([one.values for one in members])
        values = values - np.minimum(values.min(0), 0)
        return np.asarray(values / (values.sum(0) + _EPSILON) ** self.alpha)

    def _make_child(
        self,
        space: SearchSpace,
        members: Sequence[ScoredCandidate],
        worth: Array,
        rng: np.random.Generator,
    ) -> Point:
        first = _draw(worth.sum(1), rng)
        second = _draw(np.maximum(0, worth - worth[first]).sum(1), rng)
        one, other = (np.asarray(members[i].point) for i in (first, second))
        ratios = np.where(np.arange(space.size) < rng.integers(space.size + 1), 0.0, 1.0)
        ratio = rng.random()
        shares = np.abs(ratios - ratio)
        changed = rng.random(space.size) < max(0.2, 1 / space.size)
        change = changed * rng.normal(0, self.mutation * (space.high - space.low), space.size)
        return space.settle(shares * one + (1 - shares) * other + change)


def _draw(weights: Array, rng: np.random.Generator) -> int:
    """Draw a number by weights; by equal ones where all are 0."""
    weights = weights + _EPSILON * (weights.max() or 1)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
