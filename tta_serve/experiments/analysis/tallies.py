"""The logs as analyses read them: moments by arm.

They are made of sums by unit, which come from the database as a stream ordered by unit.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from sqlalchemy import and_, case, func, literal, select

from tta_serve.experiments.design.definition import Metric
from tta_serve.experiments.statistics.moments import NO_PAIRS, NOTHING, Array, Bivariate, Moments
from tta_serve.store.database import Database
from tta_serve.store.measures import BUILT_IN, match_span, select_metric, stream_rows
from tta_serve.store.records import Span
from tta_serve.store.schema import exposures, outcomes

AT_ONCE = 4096  # units in memory
_e = exposures.c


class ArmTraffic(NamedTuple):
    """What one arm acted on."""

    arm: str
    units: int
    """How many distinct units there were."""
    requests: int
    """How many requests there were."""
    first: float
    """The time of the first exposure, UTC seconds since 1970."""
    last: float
    """The time of the last exposure, UTC seconds since 1970."""


def read_traffic(db: Database, span: Span) -> dict[str, ArmTraffic]:
    """Return what the arms acted on, by arm; those without exposures are left out."""
    columns = func.count(_e.unit.distinct()), func.count(), func.min(_e.time), func.max(_e.time)
    by_arm = select(_e.arm, *columns).where(match_span(span)).group_by(_e.arm)
    with db.read() as connection:
        return {row[0]: ArmTraffic(*row) for row in connection.execute(by_arm)}


@dataclass(frozen=True)
class ArmSums:
    """The sums of a metric in one arm, of units that saw no other arm.

    Those of different units add up.
    """

    pairs: Bivariate = NO_PAIRS
    """The units with a past: x is the past, y the outcome. Of a ratio, x is how many values a unit
    has, y their sum."""
    rest: Moments = NOTHING
    """The outcomes of units without a past."""
    requests: int = 0
    """How many requests the units made."""
    values: int = 0
    """How many of the requests have a value."""
    odd: int = 0
    """How many units are left out since their mean is not the share that the metric's kind says."""

    def __add__(self, other: "ArmSums") -> "ArmSums":
        """Add the sums of other units."""
        return ArmSums(
            self.pairs + other.pairs,
            self.rest + other.rest,
            self.requests + other.requests,
            self.values + other.values,
            self.odd + other.odd,
        )


@dataclass(frozen=True)
class MetricTally:
    """The sums of a metric in all arms."""

    arms: Mapping[str, Sequence[ArmSums]]
    """By arm, one for each look, of what was known then."""
    tainted: int
    """How many units saw several arms."""

    def at(self, arm: str, look: int = -1) -> ArmSums:
        """Return the sums of an arm at a look, empty ones if nobody saw the arm."""
        return self.arms[arm][look] if arm in self.arms else ArmSums()


class _Row(NamedTuple):
    """What a unit's requests in one arm came to that first showed at one look."""

    unit: str
    arm: str
    look: int
    requests: int
    values: int
    total: float


class _Unit(NamedTuple):
    """A unit's rows, and its outcome before the experiment: NaN for none."""

    rows: list[_Row]
    past: float


def tally_metric(  # noqa: PLR0913 - one metric, in all the ways that it is looked at
    db: Database,
    span: Span,
    metric: Metric,
    ends: Sequence[float] = (math.inf,),
    before: tuple[float, float] | None = None,
    moving: bool = False,
) -> MetricTally:
    """Sum up a metric in one pass. Times are UTC, in seconds since 1970.

    Args:
        ends: When the looks are, rising; what comes after the last counts as seen at it. A request
            is seen when its outcome has come.
        before: From when until when other experiments' values are a unit's past.
        moving: Whether units may change their arm, as a bandit's do, and count once in each; else
            those that did are left out.
    """
    arms: dict[str, list[ArmSums]] = {}
    tainted = 0
    past = _read_past(db, span, metric, before) if before else iter(())
    key = itemgetter(0, 1) if moving else itemgetter(0)
    groups = groupby(_read_rows(db, span, metric, ends), key=key)
    units = _join_past((list(rows) for _, rows in groups), past)
    while batch := list(islice(units, AT_ONCE)):
        by_arm: dict[str, list[_Unit]] = {}
        for unit in batch:
            # Rows of a unit are ordered by arm.
            if unit.rows[0].arm != unit.rows[-1].arm:
                tainted += 1
            else:
                by_arm.setdefault(unit.rows[0].arm, []).append(unit)
        for arm, own in by_arm.items():
            new = _sum_units(own, metric.kind, len(ends))
            old = arms.get(arm)
            arms[arm] = [a + b for a, b in zip(old, new, strict=True)] if old else new
    return MetricTally(arms, tainted)


def _read_rows(db: Database, span: Span, metric: Metric, ends: Sequence[float]) -> Iterator[_Row]:
    """Yield the units' rows, ordered by unit, then arm."""
    value, source = select_metric(metric.name)
    # A request is seen when it has ended, or when its outcome came if that was later.
    late = [] if metric.name in BUILT_IN else [(outcomes.c.time > _e.time, outcomes.c.time)]
    seen = case(*late, else_=_e.time) if late else _e.time
    looks = [(seen <= end, i) for i, end in enumerate(ends[:-1])]
    look = case(*looks, else_=len(looks)) if looks else literal(0)
    per_unit = (
        select(
            _e.unit,
            _e.arm,
            look.label("look"),
            func.count(),
            func.count(value),
            func.coalesce(func.sum(value), 0.0),
        )
        .select_from(source)
        .where(match_span(span))
        .group_by(_e.unit, _e.arm, "look")
        .order_by(_e.unit, _e.arm)
    )
    return (_Row(*row) for row in stream_rows(db, per_unit))


def _read_past(
    db: Database, span: Span, metric: Metric, times: tuple[float, float]
) -> Iterator[tuple[str, float]]:
    """Yield units and their outcomes before the experiment, ordered by unit.

    These are of other experiments, since this one's arms are the same as now.
    """
    value, source = select_metric(metric.name)
    before = and_(_e.experiment != span.experiment, _e.time >= times[0], _e.time < times[1])
    per_unit = (
        select(_e.unit, func.count(value), func.coalesce(func.sum(value), 0.0))
        .select_from(source)
        .where(before)
        .group_by(_e.unit)
        .order_by(_e.unit)
    )
    rows = stream_rows(db, per_unit)
    if metric.kind == "total":
        return ((unit, total) for unit, _, total in rows)
    return ((unit, total / values) for unit, values, total in rows if values)


def _join_past(units: Iterable[list[_Row]], past: Iterator[tuple[str, float]]) -> Iterator[_Unit]:
    """Join each unit's rows with its past. Both come ordered by unit."""
    waiting = next(past, None)
    for rows in units:
        while waiting is not None and waiting[0] < rows[0].unit:
            waiting = next(past, None)
        own = waiting[1] if waiting is not None and waiting[0] == rows[0].unit else math.nan
        yield _Unit(rows, own)


def _sum_units(units: Sequence[_Unit], kind: str, looks: int) -> list[ArmSums]:
    """Return the sums of some units of one arm, by look."""
    # [rows, (place of the unit, look, requests, values, total)]
    rows = np.array([(i, *row[2:]) for i, unit in enumerate(units) for row in unit.rows])
    place = rows[:, 0].astype(int), rows[:, 1].astype(int)

    # Each [units, looks]: what came new at a look, then what was known at it.
    requests, values, totals = np.zeros((3, len(units), looks))
    for array, column in ((requests, 2), (values, 3), (totals, 4)):
        array[place] = rows[:, column]
    known = (array.cumsum(axis=1).T for array in (requests, values, totals))

    past = np.array([unit.past for unit in units])
    return [_sum_look(r, v, t, past, kind) for r, v, t in zip(*known, strict=True)]


def _sum_look(requests: Array, values: Array, totals: Array, past: Array, kind: str) -> ArmSums:
    """Return the sums of some units at one look, from arrays of one number a unit."""
    there = requests > 0 if kind == "total" else values > 0
    outcome = totals if kind in ("total", "ratio") else totals / np.maximum(values, 1)
    odd = there & ((outcome < 0) | (outcome > 1)) if kind == "share" else np.zeros_like(there)
    there &= ~odd

    counts = int(requests.sum()), int(values.sum()), int(odd.sum())
    if kind == "ratio":
        return ArmSums(Bivariate.of(values[there], outcome[there]), NOTHING, *counts)
    known = there & ~np.isnan(past)
    pairs = Bivariate.of(past[known], outcome[known])
    return ArmSums(pairs, Moments.of(outcome[there & ~known]), *counts)
