"""Searches whose best mix is known."""

import asyncio
from pathlib import Path

from loadtest.common.known_optimum import BATCH, GROUPS, QUESTIONS, score
from tta_serve.search.journal import SearchJournal
from tta_serve.search.scorebook import Budget, Scorebook
from tta_serve.search.search_loop import SearchRun, search
from tta_serve.search.searcher import Algorithm, SearchTask
from tta_serve.search.space import SearchSpace

UNBOUNDED = Budget()


def open_book(folder: Path, space: SearchSpace, budget: Budget = UNBOUNDED) -> Scorebook:
    """Return a scorebook of `score` with its journal in a folder."""
    return Scorebook(
        space, QUESTIONS, score, BATCH, SearchJournal.open(folder, {"seed": 0}), budget
    )


def run(algorithm: Algorithm, book: Scorebook, patience: int | None = None) -> SearchRun:
    """Search from seed 0."""
    return asyncio.run(
        search(
            algorithm,
            lambda known: SearchTask(book.space, GROUPS, known, BATCH, 0),
            book,
            BATCH,
            patience,
        )
    )
