"""CMA-ES: a normal distribution over coefficients that follows what scored best."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from cmaes import CMAwM
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from tta_serve.search.searcher import Algorithm, Candidate, Generations, SearchTask
from tta_serve.search.space import Point, SearchSpace


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class CmaEs(Algorithm):
    """CMA-ES with margin, which is made for grids, from the best that is known on.

    With `l1` it is LoraHub's objective: the score less l1 times the mean |coefficient|.
    """

    source: ClassVar[str] = (
        "Akiba et al. 2024, arXiv 2403.13187 (Evolutionary Merging); Huang et al. 2023, arXiv"
        " 2307.13269 (LoraHub); Hamano et al. 2022, arXiv 2205.13482 (CMA-ES with margin)"
    )

    sigma: Annotated[float, Field(gt=0, le=1)] = 0.3
    """The first standard deviation, as a share of the way between the bounds."""
    population: Annotated[int, Field(ge=0)] = 0
    """Candidates of a generation; 0 for as many as are scored at once."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """The price of coefficients."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield a generation at a time, without end."""
        space = task.space
        spread = self.sigma * (space.high - space.low)
        optimiser = CMAwM(
            mean=_step_inside(space, task.best.point, spread),
            sigma=spread,
            bounds=np.array([[space.low, space.high]] * space.size),
            steps=np.full(space.size, space.rules.grid),
            population_size=max(2, self.population or task.batch),
            seed=task.seed,
        )
        while not optimiser.should_stop():
            drawn = [optimiser.ask() for _ in range(optimiser.population_size)]
            points = [space.settle(values) for values, _ in drawn]
            scored = yield [Candidate(point) for point in points]
            losses = [self.l1 * _mean_size(one.point) - one.mean for one in scored]
            optimiser.tell([(own, loss) for (_, own), loss in zip(drawn, losses, strict=True)])


def _step_inside(space: SearchSpace, point: Point, spread: float) -> np.ndarray:
    """Return the point, a little away from the bounds, where half of all draws would be cut."""
    return np.clip(np.asarray(point), space.low + spread / 2, space.high - spread / 2)


def _mean_size(point: Point) -> float:
    return sum(map(abs, point)) / len(point)
