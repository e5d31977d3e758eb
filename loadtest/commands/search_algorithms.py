"""How many requests each algorithm needs where the best mix is known; no engine is asked."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.common import machine
from loadtest.common.console import progress
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


def measure_algorithms(folder: Path, requests: int, seeds: int, first: int) -> dict[str, Any]:
    """Return by algorithm and experts of no use what was found, and how soon it was near.

    Args:
        folder: A temporary one.
        requests: The budget of a search.
        seeds: How many searches the medians are over.
        first: The first one's seed.
    """
    result: dict[str, Any] = {}
    for name in ALGORITHMS:
        result[name] = {}
        for useless in USELESS:
            runs = [
                _search(folder / f"{name}-{useless}-{seed}", name, useless, requests, seed)
                for seed in range(first, first + seeds)
            ]
            result[name][str(useless)] = _sum_up(runs, requests)
        progress.log(name, machine.round_floats(result[name]))
    return result


def _sum_up(runs: Sequence[SearchRun], requests: int) -> dict[str, float | None]:
    near = [
        next((row.requests for row in run.history if row.best >= NEAR), requests + 1)
        for run in runs
    ]
    soon = median(near)
    return {
        "best": median(run.best.mean for run in runs),
        "requests_until_near": soon if soon <= requests else None,
    }


def _search(folder: Path, name: str, useless: int, requests: int, seed: int) -> SearchRun:
    space = make_space(useless)
    journal = SearchJournal.open(folder, {})
    book = Scorebook(space, QUESTIONS, score, BATCH, journal, Budget(requests))
    return asyncio.run(
        search(
            make_algorithm(name, {}),
            lambda known: SearchTask(space, GROUPS, known, BATCH, seed),
            book,
            BATCH,
        )
    )
