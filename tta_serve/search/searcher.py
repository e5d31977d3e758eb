"""What all algorithms of search are to the loop that runs them: ask, score, tell.

An algorithm is written as a generator of generations: it yields candidates, and is sent what they
scored. `Searcher` hands them out a batch at a time.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from tta_serve.search.space import Point, SearchSpace

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Candidate:
    """A point that is to be scored."""

    point: Point
    """A settled point of the space."""
    questions: tuple[int, ...] | None = None
    """The numbers of the questions that it is asked; None for all."""


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate and its scores."""

    candidate: Candidate
    scores: Mapping[int, float]
    """By the question's number, the more the better."""

    @property
    def point(self) -> Point:
        """The candidate's point."""
        return self.candidate.point

    @property
    def mean(self) -> float:
        """The mean over the questions that it was asked."""
        return sum(self.scores.values()) / max(1, len(self.scores))

    @property
    def values(self) -> Array:
        """The scores in the order of the questions."""
        return np.array([self.scores[number] for number in sorted(self.scores)])


Generations = Generator[list[Candidate], list[ScoredCandidate], None]
"""What an algorithm is: it yields candidates, and gets their scores in the same order."""


@dataclass(frozen=True)
class SearchTask:
    """What an algorithm is told before it begins."""

    space: SearchSpace
    """Where to search."""
    groups: tuple[str, ...]
    """By question, which task it belongs to."""
    known: tuple[ScoredCandidate, ...]
    """The base, experts alone and all of them, asked all questions."""
    batch: int
    """How many candidates are scored at a time at no more cost than one after the other."""
    seed: int
    """Of all draws."""

    @property
    def best(self) -> ScoredCandidate:
        """The best of what is known."""
        return choose_best(self.known)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the groups."""
        return tuple(sorted(set(self.groups)))

    def mean_by_task(self, scored: ScoredCandidate) -> Array:
        """Return the mean score of each task, in the order of `tasks`."""
        found = [
            [value for number, value in scored.scores.items() if self.groups[number] == task]
            for task in self.tasks
        ]
        return np.array([sum(own) / max(1, len(own)) for own in found])


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Algorithm:
    """An algorithm with its options, which are its fields."""

    source: ClassVar[str] = ""
    """The papers that it comes from."""
    fronts: ClassVar[bool] = False
    """Whether it looks for a front of many tasks rather than for one best point."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield candidates until there is nothing more to try."""
        raise NotImplementedError


class AsksAndTells(Protocol):
    """What the loop needs of an algorithm."""

    def ask(self, count: int) -> list[Candidate]:
        """Return at most so many candidates that are to be scored next; none at the end."""
        ...

    def tell(self, scored: Sequence[ScoredCandidate]) -> None:
        """Take the scores of what was asked for last, in the same order."""
        ...


@dataclass
class Searcher:
    """An algorithm at work, asked for candidates and told their scores."""

    generations: Generations
    """What the algorithm yields."""
    _waiting: list[Candidate] = field(default_factory=list)
    _scored: list[ScoredCandidate] = field(default_factory=list)
    _started: bool = False
    _ended: bool = False

    def ask(self, count: int) -> list[Candidate]:
        """Return at most so many candidates that are to be scored next; none at the end."""
        while not self._waiting and not self._ended:
            self._advance()
        handed, self._waiting = self._waiting[:count], self._waiting[count:]
        return handed

    def tell(self, scored: Sequence[ScoredCandidate]) -> None:
        """Take the scores of what was asked for last, in the same order."""
        self._scored += scored

    def _advance(self) -> None:
        scored, self._scored = self._scored, []
        try:
            if self._started:
                self._waiting = self.generations.send(scored)
            else:
                self._started, self._waiting = True, next(self.generations)
        except StopIteration:
            self._ended = True


def choose_best(scored: Sequence[ScoredCandidate]) -> ScoredCandidate:
    """Return the best by its mean; of equal ones the smallest coefficients, then the first.

    Args:
        scored: One or more, all asked the same questions.
    """
    return _rank(scored)[0]


def list_best(scored: Sequence[ScoredCandidate], count: int) -> list[Point]:
    """List the points of at most so many of the best, the best first.

    Args:
        scored: All asked the same questions.
        count: How many.
    """
    return [one.point for one in _rank(scored)[:count]]


def _rank(scored: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
    return sorted(scored, key=lambda one: (-round(one.mean, 12), sum(map(abs, one.point))))
