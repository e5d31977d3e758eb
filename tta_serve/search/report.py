"""What a search says at its end: tables, a line of JSON, an entry or a front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from adapters.coefficient import Json
from adapters.files.atomic import check_free
from adapters.files.facts import NAME
from adapters.library.entries import ENTRIES, Entry, write_entry
from adapters.library.names import RESERVED_NAMES
from tta_serve.evaluation.tables import format_cell
from tta_serve.reporting.tables import Sheet
from tta_serve.search.errors import SearchError
from tta_serve.search.holdout import FOUND, to_plain
from tta_serve.search.search_job import SearchOutcome, SearchSettings
from tta_serve.search.server_facts import ServerFacts

_NOTE = (
    "In brackets: bootstrap intervals of 95 %. The questions were held out: no candidate was scored"
    " on them."
)


def check_name(root: Path, name: str, experts: Sequence[str], *, replace: bool) -> None:
    """Raise SearchError or LibraryError if an entry cannot be stored under a name."""
    if not root.is_dir():
        raise SearchError(
            f"the library's folder {root} is not on this machine: give it with --library, or leave"
            " out --name and store no entry"
        )
    if not NAME.fullmatch(name) or name in RESERVED_NAMES or name in experts:
        raise SearchError(
            f"--name {name!r}: letters, digits, dot, dash and underscore are allowed; experts have"
            " their own names"
        )
    check_free(root / ENTRIES / f"{name}.json", replace=replace)


def store_entry(  # noqa: PLR0913 - what an entry says
    root: Path,
    name: str,
    settings: SearchSettings,
    outcome: SearchOutcome,
    facts: ServerFacts,
    *,
    replace: bool,
) -> bool:
    """Store what was found as an entry of the library.

    Returns:
        Whether there is anything to store: the base alone is no entry.
    """
    best = outcome.run.best
    mix = settings.space.read(best.point)
    if mix.is_base:
        return False
    coefficients = mix.as_dict()
    held_out = {row.arm: row.score.value for row in outcome.rows}
    source: dict[str, str | int | float | bool] = {
        "method": "search",
        "algorithm": settings.algorithm_name,
        "objective": settings.objective,
        "seed": settings.seed,
        "requests": outcome.requests,
        "score": best.mean,
        "score_held_out": held_out[FOUND],
    }
    digests = {expert: facts.digests[expert] for expert in coefficients}
    write_entry(root / ENTRIES, Entry(name, coefficients, digests, source), replace=replace)
    return True


def make_sheets(settings: SearchSettings, outcome: SearchOutcome) -> list[Sheet]:
    """Return the tables: what was found, and how it compares."""
    run, space = outcome.run, settings.space
    mix = space.read(run.best.point).as_json()
    found = [
        (
            "searched",
            f"{outcome.mixes} mixes, {outcome.requests} requests, {outcome.seconds:.0f} s",
        ),
        ("ended", run.ended),
        ("score", f"{run.best.mean:.3f} on {len(settings.split.searched)} questions"),
        *((name, _describe(value)) for name, value in mix.items()),
    ]
    rows = [(row.arm, format_cell(row.score), format_cell(row.found_over)) for row in outcome.rows]
    title = f"On {len(settings.split.held_out)} questions held out: {settings.objective}"
    return [
        Sheet(f"Found by {settings.algorithm_name}", ("", "value"), found),
        Sheet(title, ("arm", "score", "found, less this arm"), rows, _NOTE),
    ]


def _describe(value: Json) -> str:
    """Return a coefficient in words: layers that follow each other with equal ones together."""
    if isinstance(value, dict):
        return ", ".join(f"{half} {_describe(part)}" for half, part in value.items())
    if isinstance(value, list):
        runs = [(number, len(list(own))) for number, own in groupby(value)]
        return ", ".join(f"{number:g} ({count} layers)" for number, count in runs)
    return f"{value:g}"


def make_line(
    settings: SearchSettings, outcome: SearchOutcome, entry: str | None
) -> dict[str, Any]:
    """Return the last line of the output."""
    run = outcome.run
    rows = {row.arm: row for row in outcome.rows}
    single = max(
        (row for row in outcome.rows if row.arm.startswith("expert ")),
        key=lambda row: row.score.value,
    )
    policy = next(row for row in outcome.rows if row.arm.startswith("policy "))
    requests, seconds = outcome.fresh
    asked = requests / len(settings.split.searched)
    return {
        "algorithm": settings.algorithm_name,
        "objective": settings.objective,
        "experts": settings.space.read(run.best.point).as_json(),
        "entry": entry,
        "score": round(run.best.mean, 4),
        "score_held_out": to_plain(rows[FOUND].score),
        "best_single": single.arm.removeprefix("expert "),
        "over_best_single": to_plain(single.found_over),
        "over_uniform": to_plain(rows["uniform"].found_over) if "uniform" in rows else None,
        "over_default": to_plain(policy.found_over),
        "ended": run.ended,
        "requests": outcome.requests,
        "mixes": outcome.mixes,
        "minutes": round(outcome.seconds / 60, 2),
        "candidates_hour": round(3600 * asked / seconds, 1) if requests else None,
        "held_out": {name: to_plain(row.score) for name, row in rows.items()},
    }


def list_history(outcome: SearchOutcome) -> list[Mapping[str, float]]:
    """Return where the search stood after each batch."""
    return [
        {"requests": row.requests, "best": row.best, "batch": row.batch}
        for row in outcome.run.history
    ]
