"""NSGA-II: a population that spreads over the front of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

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
from tta_serve.search.space import Point, SearchSpace


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Nsga2(Algorithm):
    """NSGA-II of optuna over the mean score of every task; what is known is in the first one."""

    source: ClassVar[str] = (
        "Deb et al. 2002, doi 10.1109/4235.996017; merging for many tasks: Li et al. 2024, arXiv"
        " 2407.00487 (MM-MO)"
    )
    fronts: ClassVar[bool] = True

    population: Annotated[int, Field(ge=0)] = 0
    """Candidates of a generation; 0 for as many as are scored at once."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield a generation at a time, without end."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        size = max(4, self.population or task.batch)
        study = optuna.create_study(
            directions=["maximize"] * len(task.tasks),
            sampler=optuna.samplers.NSGAIISampler(population_size=size, seed=task.seed),
        )
        names = _describe(task.space)
        for known in task.known:
            study.enqueue_trial(dict(zip(names, known.point, strict=True)))
        while True:
            trials = [study.ask(names) for _ in range(size)]
            points = [task.space.settle([t.params[name] for name in names]) for t in trials]
            scored = yield [Candidate(point) for point in points]
            for trial, one in zip(trials, scored, strict=True):
                study.tell(trial, task.mean_by_task(one).tolist())


def _describe(space: SearchSpace) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    steps = int((space.high - space.low) / space.rules.grid + 1e-9)
    high = space.low + steps * space.rules.grid
    return {
        f"c{i}": FloatDistribution(space.low, high, step=space.rules.grid)
        for i in range(space.size)
    }


def find_front(
    task: SearchTask, scored: Sequence[ScoredCandidate]
) -> list[tuple[Point, tuple[float, ...]]]:
    """Return the points that no other is at least as good as for every task, with their means."""
    import moocore

    smallest = sorted(scored, key=lambda one: sum(map(abs, one.point)))
    values = np.array([task.mean_by_task(one) for one in smallest])
    kept = moocore.is_nondominated(values, maximise=True, keep_weakly=False)
    return [
        (one.point, tuple(value.tolist()))
        for one, value, stays in zip(smallest, values, kept, strict=True)
        if stays
    ]


def measure_hypervolume(values: Sequence[Sequence[float]], worst: Sequence[float]) -> float:
    """Return the volume that points dominate, above the worst value of each task."""
    import moocore

    return float(
        moocore.hypervolume(np.asarray(values, float), ref=np.asarray(worst, float), maximise=True)
    )
