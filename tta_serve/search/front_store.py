"""A front that was searched, as the policy `pareto` reads it."""

from __future__ import annotations

from pathlib import Path

from adapters.coefficient import Coefficient
from router.policies.pareto import FRONTS, Front, Point
from tta_serve.offline.stored_entries import EntryFamily, name_entry
from tta_serve.search.algorithms.nsga2 import find_front, measure_hypervolume
from tta_serve.search.errors import SearchError
from tta_serve.search.search_job import SearchOutcome, SearchSettings
from tta_serve.search.server_facts import ServerFacts
from tta_serve.search.split import name_group

MOST_POINTS = 32
"""How many points a front is stored with; those with the best mean."""
_FAMILY = EntryFamily(FRONTS, "search", "front")


def check_front(settings: SearchSettings, root: Path, name: str, *, replace: bool) -> None:
    """Raise SearchError or LibraryError if `pareto` could not read the front of a search."""
    tasks = sorted(set(map(name_group, settings.split.searched)))
    if settings.space.by != "expert" or tasks != sorted(settings.space.experts):
        raise SearchError(
            "a front is kept for the policy pareto, which wants a coefficient for each expert"
            " (--by expert) and questions of exactly these experts (`task`); got questions of"
            f" {', '.join(tasks)} for {', '.join(sorted(settings.space.experts))}"
        )
    _FAMILY.check(root, name, MOST_POINTS, replace=replace)


def store_front(  # noqa: PLR0913 - what a front says
    root: Path,
    name: str,
    settings: SearchSettings,
    outcome: SearchOutcome,
    facts: ServerFacts,
    *,
    replace: bool,
) -> int:
    """Store the undominated candidates of a search, and return how many those are."""
    task = outcome.run.task
    found = [row for row in find_front(task, outcome.run.scored) if any(row[0])]
    best = sorted(found, key=lambda row: -sum(row[1]))[:MOST_POINTS]
    points, entries = [], dict[str, dict[str, Coefficient]]()
    for number, (place, values) in enumerate(best, 1):
        entry = name_entry(name, number)
        numbers = dict(zip(settings.space.experts, place, strict=True))
        scores = dict(zip(task.tasks, values, strict=True))
        points.append(Point(entry, scores, numbers, scores, scores))
        entries[entry] = {expert: value for expert, value in numbers.items() if value}
    digests = {expert: facts.digests[expert] for expert in settings.space.experts}
    _FAMILY.store(
        root, name, Front(task.tasks, tuple(points), digests, {}), entries, replace=replace
    )
    return len(points)


def measure_volume(outcome: SearchOutcome) -> float:
    """Return the hypervolume of what was found, above the worst score of each task."""
    task = outcome.run.task
    values = [task.mean_by_task(one) for one in outcome.run.scored]
    worst = [min(column) for column in zip(*values, strict=True)]
    return measure_hypervolume([own.tolist() for own in values], worst)
