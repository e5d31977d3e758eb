"""How many requests each algorithm needs where the best mix is known; no engine is asked."""

import asyncio
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.common.known_optimum import BATCH, GROUPS, QUESTIONS, make_space, score
from tta_serve.search.algorithms.registry import ALGORITHMS, make_algorithm
from tta_serve.search.journal import SearchJournal
from tta_serve.search.scorebook import Budget, Scorebook
from tta_serve.search.search_loop import SearchRun, search
from tta_serve.search.searcher import SearchTask

USELESS = (0, 16, 48)
"""How many experts of no use are among them."""
NEAR = 0.95
"""Of the optimum's score, which is 1."""


def measure_algorithms(requests: int, seeds: int) -> dict[str, Any]:
    """Return by algorithm and experts of no use what was found, and how soon it was near.

    Args:
        requests: The budget of a search.
        seeds: How many searches the medians are over.
    """
    return {
        name: {str(useless): _measure(name, useless, requests, seeds) for useless in USELESS}
        for name in ALGORITHMS
    }


def _measure(name: str, useless: int, requests: int, seeds: int) -> dict[str, float | None]:
    runs = [_search(name, useless, requests, seed) for seed in range(seeds)]
    near = [
        next((row.requests for row in run.history if row.best >= NEAR), requests + 1)
        for run in runs
    ]
    soon = median(near)
    return {
        "best": median(run.best.mean for run in runs),
        "requests_until_near": soon if soon <= requests else None,
    }


def _search(name: str, useless: int, requests: int, seed: int) -> SearchRun:
    space = make_space(useless)
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        journal = SearchJournal.open(Path(folder), {})
        book = Scorebook(space, QUESTIONS, score, BATCH, journal, Budget(requests))
        return asyncio.run(
            search(
                make_algorithm(name, {}),
                lambda known: SearchTask(space, GROUPS, known, BATCH, seed),
                book,
                BATCH,
            )
        )
