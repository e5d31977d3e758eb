"""CycleQD: an archive of merges that differ in what they can do, each task in turn the goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from tta_serve.search.searcher import (
    Algorithm,
    Candidate,
    Generations,
    ScoredCandidate,
    SearchTask,
)

Cell = tuple[int, ...]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class QualityDiversity(Algorithm):
    """MAP-Elites with one archive for each task, which is its quality; the others' scores are its
    cells.

    A generation takes its parents from the next archive in turn, drawn by their quality; a child
    is a + w_1 (b - a) + noise along the experts, with w_1 drawn around a half. It enters every
    archive.
    """

    source: ClassVar[str] = "Kuroki et al. 2024, arXiv 2410.14735 (CycleQD)"
    fronts: ClassVar[bool] = True

    cells: Annotated[int, Field(ge=1)] = 4
    """Into how many steps a score is divided."""
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The standard deviation of changes, as a share of the way between the bounds."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield children, as many as are scored at once, without end."""
        rng, space = np.random.default_rng(task.seed), task.space
        archives = [dict[Cell, ScoredCandidate]() for _ in task.tasks]
        scored: Sequence[ScoredCandidate] = task.known
        turn = 0
        while True:
            for one in scored:
                self._enter(archives, one, task)
            goal = turn % len(archives)
            elites = list(archives[goal].values())
            quality = np.array([task.mean_by_task(one)[goal] for one in elites])
            weights = quality - quality.min() + 0.1 * (np.ptp(quality) or 1)
            children = []
            for _ in range(task.batch):
                pair = rng.choice(len(elites), 2, p=weights / weights.sum())
                a, b = (np.asarray(elites[i].point) for i in pair)
                noise = rng.normal(0, self.mutation * (space.high - space.low), space.size)
                changed = rng.random(space.size) < max(0.3, 1 / space.size)
                children.append(space.settle(a + rng.normal(0.5, 0.3) * (b - a) + changed * noise))
            scored = yield [Candidate(child) for child in children]
            turn += 1

    def _enter(
        self,
        archives: Sequence[dict[Cell, ScoredCandidate]],
        one: ScoredCandidate,
        task: SearchTask,
    ) -> None:
        values = task.mean_by_task(one)
        steps = np.floor(np.clip(values, 0, 1 - 1e-9) * self.cells).astype(int)
        for goal, archive in enumerate(archives):
            cell = tuple(np.delete(steps, goal).tolist())
            there = archive.get(cell)
            if there is None or task.mean_by_task(there)[goal] < values[goal]:
                archive[cell] = one
