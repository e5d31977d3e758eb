"""Evo-Merging: experts of no use are left out first, then CMA-ES mixes the others."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from tta_serve.search.algorithms.cma_es import CmaEs
from tta_serve.search.algorithms.halving import spread_questions
from tta_serve.search.searcher import (
    Algorithm,
    Candidate,
    Generations,
    ScoredCandidate,
    SearchTask,
)
from tta_serve.search.space import Point


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Pruning(Algorithm):
    """CMA-ES over the experts whose presence pays.

    What an expert is worth is told by random mixes of a few experts each, asked a share of the
    questions: the slope of a ridge regression of their scores on coefficients, beside what the
    expert scores alone. This is the denoising of Evo-Merging by experts, as here no weights are
    seen; its sign-aware scaling is what the search does where the lower bound is below 0.
    """

    source: ClassVar[str] = "Chen et al. 2025, arXiv 2509.12951 (Evo-Merging)"

    keep: Annotated[int, Field(ge=1)] = 6
    """How many experts are left."""
    probes: Annotated[int, Field(ge=0)] = 0
    """Random mixes; 0 for four times as many as there are experts."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the questions that they are asked."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield the random mixes, then generations of CMA-ES on fewer experts."""
        kept = yield from self._choose(task)
        space = task.space
        small = replace(space, experts=tuple(space.experts[k] for k in kept))
        columns = [c for k in kept for c in space.group(k)]

        def widen(point: Point) -> Point:
            found = np.zeros(space.size)
            found[columns] = point
            return tuple(found.tolist())

        def narrow(one: ScoredCandidate) -> ScoredCandidate:
            return replace(one, candidate=Candidate(tuple(one.point[c] for c in columns)))

        inside = [
            o for o in task.known if not any(v for c, v in enumerate(o.point) if c not in columns)
        ]
        inner = CmaEs().generate(replace(task, space=small, known=tuple(map(narrow, inside))))
        candidates = next(inner)
        while True:
            scored = yield [Candidate(widen(one.point)) for one in candidates]
            try:
                candidates = inner.send([narrow(one) for one in scored])
            except StopIteration:
                return

    def _choose(
        self, task: SearchTask
    ) -> Generator[list[Candidate], list[ScoredCandidate], list[int]]:
        """Return the numbers of the experts that are kept, in order."""
        space, rng = task.space, np.random.default_rng(task.seed)
        count = len(space.experts)
        if count <= self.keep:
            return list(range(count))
        order = spread_questions(task.groups, rng)
        asked = order[: max(1, round(self.share * len(order)))]
        drawn = []
        for _ in range(self.probes or 4 * count):
            used = rng.choice(count, min(space.most, count), replace=False)
            blocks = np.zeros((count, space.parts))
            blocks[used] = rng.uniform(0.2, 1, (len(used), 1)) * space.high
            drawn.append(space.settle(blocks.ravel()))
        scored = yield [Candidate(point, asked) for point in drawn]

        sizes = np.array([np.reshape(one.point, (count, -1)).mean(1) for one in scored])
        scores = np.array([one.mean for one in scored])
        centred = sizes - sizes.mean(0)
        ridge = centred.T @ centred + 0.1 * np.eye(count)
        slopes = np.linalg.solve(ridge, centred.T @ (scores - scores.mean()))
        alone = np.array([one.mean for one in task.known[1 : count + 1]]) - task.known[0].mean
        worth = _scale(slopes) + _scale(alone)
        return sorted(np.argsort(-worth, kind="stable")[: self.keep].tolist())


def _scale(values: np.ndarray) -> np.ndarray:
    return values / (np.abs(values).max() or 1)
