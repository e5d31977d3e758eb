"""The loop of a search: ask the algorithm, score what it asks for, tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tta_serve.search.errors import SearchError
from tta_serve.search.scorebook import Scorebook
from tta_serve.search.searcher import (
    Algorithm,
    Candidate,
    ScoredCandidate,
    Searcher,
    SearchTask,
    choose_best,
)

End = Literal["budget", "patience", "finished"]
"""Why a search ended: the budget was spent, nothing was better for a while, nothing was left."""

_UNASKED = 20  # batches of nothing but what was scored before, after which nothing new will come


@dataclass(frozen=True)
class HistoryRow:
    """Where a search stood after a batch of candidates."""

    requests: int
    """How many questions had been asked."""
    best: float
    """The best mean score over all questions so far."""
    batch: float
    """The mean score of the batch."""


@dataclass
class SearchRun:
    """What a search has found."""

    task: SearchTask
    """What was searched."""
    scored: list[ScoredCandidate] = field(default_factory=list)
    """All candidates that were asked all questions, in order, the known ones first."""
    history: list[HistoryRow] = field(default_factory=list)
    """By batch."""
    ended: End = "finished"
    """Why it ended."""

    @property
    def best(self) -> ScoredCandidate:
        """The best candidate."""
        return choose_best(self.scored)


async def search(
    algorithm: Algorithm,
    make_task: Callable[[tuple[ScoredCandidate, ...]], SearchTask],
    book: Scorebook,
    batch: int,
    patience: int | None = None,
) -> SearchRun:
    """Search until the budget is spent, or nothing better was found for a while.

    First the base, the experts alone and all of them are scored.

    Args:
        algorithm: What proposes candidates.
        make_task: Makes the task, once what is known is scored.
        book: What scores them.
        batch: How many candidates are asked for at a time.
        patience: After so many batches without anything better the search ends; None for never.

    Raises:
        SearchError: The budget does not reach for what is known.
    """
    known = [Candidate(point) for point in book.space.list_known().values()]
    scored = await book.score(known)
    if len(scored) < len(known):
        raise SearchError(
            f"the budget must reach for {len(known)} candidates and all {book.questions} questions"
            f" before the search begins, that is {len(known) * book.questions} requests"
        )
    run = SearchRun(make_task(tuple(scored)), list(scored))
    run.history.append(_sum_up(run, book, scored))
    searcher, idle, unasked = Searcher(algorithm.generate(run.task)), 0, 0
    while unasked < _UNASKED and (asked := searcher.ask(batch)):
        before, requests = run.best.mean, book.requests
        scored = await book.score(asked)
        run.scored += [one for one in scored if len(one.scores) == book.questions]
        if scored:
            run.history.append(_sum_up(run, book, scored))
        if len(scored) < len(asked):
            run.ended = "budget"
            break
        searcher.tell(scored)
        unasked = 0 if book.requests > requests else unasked + 1
        idle = 0 if run.best.mean > before else idle + 1
        if patience is not None and idle >= patience:
            run.ended = "patience"
            break
    return run


def _sum_up(run: SearchRun, book: Scorebook, scored: Sequence[ScoredCandidate]) -> HistoryRow:
    return HistoryRow(book.requests, run.best.mean, sum(one.mean for one in scored) / len(scored))
