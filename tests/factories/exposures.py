"""Exposures for the tests, and what the logs hold of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from tta_serve.store.database import Database
from tta_serve.store.measures import match_span, select_metric, stream_rows
from tta_serve.store.records import Exposure, Span
from tta_serve.store.schema import exposures

SOME = Exposure(
    request_id="chatcmpl-1",
    experiment="routing",
    version=1,
    arm="gate",
    unit="5f2d",
    policy="gate",
    policy_version="3",
    mix="598c2545a1589462",
    propensity=0.5,
    router_ms=0.6,
    total_ms=120.0,
    prompt_tokens=51,
    completion_tokens=12,
    outcome="ok",
    time=1000.0,
)
_e = exposures.c


@dataclass(frozen=True)
class UnitSum:
    """What the requests of one unit in one arm came to."""

    arm: str
    unit: str
    n: int
    """How many of the unit's requests have a value in the metric."""
    total: float
    """The sum of the values, 0 of none."""


def exposure(**changes: Any) -> Exposure:
    """Return SOME with some columns changed."""
    return Exposure(**{**vars(SOME), **changes})


def number_exposures(count: int, **changes: Any) -> list[Exposure]:
    """Return exposures whose ids and times count up from 0."""
    return [exposure(request_id=f"chatcmpl-{i:06}", time=float(i), **changes) for i in range(count)]


def read_exposures(
    db: Database, span: Span, metric: str
) -> Iterator[tuple[Exposure, float | None]]:
    """Yield every exposure, in order of time, with the metric's value where it has one."""
    value, source = select_metric(metric)
    rows = (
        select(exposures, value)
        .select_from(source)
        .where(match_span(span))
        .order_by(_e.time, _e.request_id)
    )
    names = exposures.columns.keys()
    for row in stream_rows(db, rows):
        yield Exposure(**dict(zip(names, row[:-1], strict=True))), row[-1]


def count_units(db: Database, span: Span) -> dict[str, int]:
    """Return how many distinct units each arm acted on."""
    counts = select(_e.arm, func.count(_e.unit.distinct())).where(match_span(span))
    with db.read() as connection:
        return dict(connection.execute(counts.group_by(_e.arm).order_by(_e.arm)).all())


def sum_by_unit(db: Database, span: Span, metric: str) -> Iterator[UnitSum]:
    """Yield a row for every exposed arm and unit, ordered by unit (by code point), then arm.

    Args:
        metric: One of BUILT_IN, or of outcomes.
    """
    value, source = select_metric(metric)
    per_unit = (
        select(_e.arm, _e.unit, func.count(value), func.coalesce(func.sum(value), 0.0))
        .select_from(source)
        .where(match_span(span))
        .group_by(_e.unit, _e.arm)
        .order_by(_e.unit, _e.arm)
    )
    return (UnitSum(*row) for row in stream_rows(db, per_unit))
