"""Frank-Wolfe: one expert more at a time, the one towards which the score rises most."""

from __future__ import annotations

from collections.abc import Generator
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
    choose_best,
)
from tta_serve.search.space import Point, SearchSpace


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class FrankWolfe(Algorithm):
    """Frank-Wolfe by finite differences, as scores have no gradient.

    The vertices are the base, each expert alone, and each coordinate at a bound with the others as
    they are. A step probes c + gamma (vertex - c) for all of them at once, with gamma = 2 / (t + 2)
    halved for every step that helped nothing, and then searches the line to the best one. As one
    vertex enters a step, experts of no use stay out, however many there are. It ends when no step
    of the grid's width helps.
    """

    source: ClassVar[str] = "Chen et al. 2025, arXiv 2503.12649 (FW-Merging)"

    steps: Annotated[int, Field(ge=1)] = 30
    """The most steps."""
    line: Annotated[int, Field(ge=1)] = 7
    """Points that are tried on the way to the chosen vertex and beyond it."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield the probes of a step, then the points of its line."""
        space, best, halvings = task.space, task.best, 0
        for step in range(self.steps):
            gamma = 2 / (step - halvings + 2) / 2**halvings

            # Which way.
            vertices = _list_vertices(space, best.point)
            probes = {_step_to(space, best.point, v, gamma): v for v in reversed(vertices)}
            probes.pop(best.point, None)
            scored = (yield [Candidate(point) for point in probes]) if probes else []

            # How far.
            if scored:
                chosen = choose_best(scored).point
                scored = [
                    *scored,
                    *(yield from self._search_line(space, best.point, probes[chosen], gamma)),
                ]

            better = choose_best([best, *scored])
            if better.point == best.point:
                halvings += 1
                if gamma * (space.high - space.low) < space.rules.grid:
                    return
            best = better

    def _search_line(
        self, space: SearchSpace, point: Point, vertex: Point, gamma: float
    ) -> Generator[list[Candidate], list[ScoredCandidate], list[ScoredCandidate]]:
        shares = np.linspace(0, min(1.0, 2 * gamma), self.line + 1)[1:]
        line = {_step_to(space, point, vertex, float(share)) for share in shares} - {point}
        return (yield [Candidate(found) for found in sorted(line)]) if line else []


def _list_vertices(space: SearchSpace, point: Point) -> list[Point]:
    """List where a step may go: the base, and the bounds of every coordinate.

    A coordinate's vertex leaves the others as they are: the box is a product of lines, and its
    linear minimum is that of each.
    """
    bounds = [space.high, *([space.low] if space.low < 0 else []), 0.0]
    moved = [
        (*point[:i], bound, *point[i + 1 :])
        for i in range(space.size)
        for bound in bounds
        if point[i] != bound
    ]
    whole = [space.isolate(k, space.high) for k in range(len(space.experts))]
    return list(dict.fromkeys([*moved, *whole, space.origin]))


def _step_to(space: SearchSpace, point: Point, vertex: Point, share: float) -> Point:
    here, there = np.asarray(point), np.asarray(vertex)
    return space.settle(here + share * (there - here))
