"""What an analysis reads of the logs: sums, made in the database and read as a stream."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Double, FromClause, Select, and_, case, cast, func, select

from tta_serve.store.database import Database
from tta_serve.store.records import Exposure
from tta_serve.store.tables import exposures, outcomes

_AT_ONCE = 1000  # rows in memory
_e = exposures.c

BUILT_IN: Mapping[str, ColumnElement[float | None]] = {
    "total_ms": _e.total_ms,
    "ttft_ms": _e.ttft_ms,
    "router_ms": _e.router_ms,
    "completion_tokens": cast(_e.completion_tokens, Double),
    "error": case((_e.outcome == "error", 1.0), else_=0.0),
    "abstained": case((_e.abstained, 1.0), else_=0.0),
}


@dataclass(frozen=True)
class Span:
    """Versions `first` to `last` of an experiment, both included; to the newest if `last` is None."""

    experiment: str
    first: int = 1
    last: int | None = None


@dataclass(frozen=True)
class UnitSum:
    """n: the unit's requests that have a value in the metric   total: the sum of the values, 0 of none"""

    arm: str
    unit: str
    n: int
    total: float


def units(db: Database, span: Span) -> dict[str, int]:
    """How many distinct units each arm acted on."""
    counts = select(_e.arm, func.count(_e.unit.distinct())).where(within(span)).group_by(_e.arm).order_by(_e.arm)
    with db.read() as connection:
        return dict(connection.execute(counts).all())


def sums(db: Database, span: Span, metric: str) -> Iterator[UnitSum]:
    """One row for every arm and unit that were exposed, ordered by unit (by code point), then arm.

    metric: one of BUILT_IN, or of outcomes
    """
    value, source = measured(metric)
    per_unit = (
        select(_e.arm, _e.unit, func.count(value), func.coalesce(func.sum(value), 0.0))
        .select_from(source)
        .where(within(span))
        .group_by(_e.unit, _e.arm)
        .order_by(_e.unit, _e.arm)
    )
    return (UnitSum(*row) for row in streamed(db, per_unit))


def logged(db: Database, span: Span, metric: str) -> Iterator[tuple[Exposure, float | None]]:
    """Every exposure, in order of time, with the metric's value where it has one: what an off-policy estimate needs."""
    value, source = measured(metric)
    rows = select(exposures, value).select_from(source).where(within(span)).order_by(_e.time, _e.request_id)
    names = exposures.columns.keys()
    return ((Exposure(**dict(zip(names, row[:-1], strict=True))), row[-1]) for row in streamed(db, rows))


def within(span: Span) -> ColumnElement[bool]:
    last = [] if span.last is None else [_e.version <= span.last]
    return and_(_e.experiment == span.experiment, _e.version >= span.first, *last)


def measured(metric: str) -> tuple[ColumnElement[float | None], FromClause]:
    if metric in BUILT_IN:
        return BUILT_IN[metric], exposures
    of_request = and_(outcomes.c.request_id == _e.request_id, outcomes.c.metric == metric)
    return outcomes.c.value, exposures.outerjoin(outcomes, of_request)


def streamed(db: Database, rows: Select[Any]) -> Iterator[tuple[Any, ...]]:
    with db.read() as connection:
        yield from connection.execution_options(yield_per=_AT_ONCE).execute(rows)
