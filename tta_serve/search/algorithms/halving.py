"""Successive halving: many candidates on few questions, the better half on twice as many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from tta_serve.search.searcher import (
    Algorithm,
    Candidate,
    Generations,
    SearchTask,
    choose_best,
    list_best,
)
from tta_serve.search.space import Point


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Halving(Algorithm):
    """Successive halving over questions, in rounds.

    A round draws candidates, the first one all over the space and later ones around the best so
    far. Each rung asks the candidates that are left so many times more questions, and keeps the
    better ones; what reaches the last rung has been asked all.
    """

    source: ClassVar[str] = "Jamieson & Talwalkar 2016, arXiv 1502.07943"

    candidates: Annotated[int, Field(ge=2)] = 64
    """How many a round draws."""
    keep: Annotated[int, Field(ge=2)] = 3
    """One of so many is kept at each rung, and asked so many times more questions."""
    least: Annotated[int, Field(ge=1)] = 4
    """The questions of the first rung."""
    rounds: Annotated[int, Field(ge=1)] = 8
    """How many rounds there are at most."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield the rungs of each round."""
        rng, best = np.random.default_rng(task.seed), task.best
        order = spread_questions(task.groups, rng)
        for number in range(self.rounds):
            points = self._draw(task, best.point, number, rng)
            for asked in self._rungs(len(order)):
                scored = yield [
                    Candidate(p, None if asked is None else order[:asked]) for p in points
                ]
                if asked is None:
                    best = choose_best([best, *scored])
                else:
                    points = list_best(scored, max(1, len(points) // self.keep))

    def _rungs(self, questions: int) -> Iterator[int | None]:
        """Yield how many questions each rung asks; None for all, at last."""
        asked = self.least
        while asked < questions:
            yield asked
            asked *= self.keep
        yield None

    def _draw(
        self, task: SearchTask, best: Point, number: int, rng: np.random.Generator
    ) -> list[Point]:
        """Draw different points, in later rounds ever nearer to the best so far."""
        space, found = task.space, dict[Point, None]()
        for _ in range(20 * self.candidates):
            if number == 0:
                used = rng.random(space.size) < rng.uniform(0.1, 1)
                drawn = used * rng.uniform(space.low, space.high, space.size)
            else:
                moved = rng.random(space.size) < max(0.3, 1.5 / space.size)
                width = (space.high - space.low) * 0.3 / number
                drawn = np.asarray(best) + moved * rng.normal(0, width, space.size)
            found[space.settle(drawn)] = None
            if len(found) == self.candidates:
                break
        return list(found)


def spread_questions(groups: Sequence[str], rng: np.random.Generator) -> tuple[int, ...]:
    """Return the numbers of all questions in random order, so that each group has its turn."""
    shuffled = rng.permutation(len(groups)).tolist()
    seen = dict.fromkeys(groups, 0)
    turns = []
    for number in shuffled:
        turns.append((seen[groups[number]], number))
        seen[groups[number]] += 1
    return tuple(number for _, number in sorted(turns, key=lambda pair: pair[0]))
