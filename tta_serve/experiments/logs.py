"""The logs as analyses read them: moments by arm, from sums by unit that come as a stream, ordered by unit."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from sqlalchemy import and_, case, func, literal, select

from router.experiments.definition import Metric
from router.experiments.moments import NO_PAIRS, NOTHING, Array, Bivariate, Moments
from tta_serve.store.database import Database
from tta_serve.store.measures import BUILT_IN, Span, measured, streamed, within
from tta_serve.store.tables import exposures, outcomes

AT_ONCE = 4096  # units in memory
_e = exposures.c


class Acted(NamedTuple):
    """What there is of one arm. first, last: times of exposures, UTC seconds since 1970"""

    arm: str
    units: int
    requests: int
    first: float
    last: float


def acted(db: Database, span: Span) -> dict[str, Acted]:
    """By arm, those without exposures left out."""
    seen = func.count(_e.unit.distinct()), func.count(), func.min(_e.time), func.max(_e.time)
    with db.read() as connection:
        rows = connection.execute(select(_e.arm, *seen).where(within(span)).group_by(_e.arm))
        return {row[0]: Acted(*row) for row in rows}


@dataclass(frozen=True)
class Cell:
    """A metric in one arm, of units that saw no other arm. Cells of different units add up.

    pairs: of units with a past, x the past and y the outcome; of a ratio, x how many values a unit has and y their sum
    rest: outcomes of units without a past   requests: of these units   values: how many of them have a value
    odd: units left out since their mean is not the share that the metric's kind says it is
    """

    pairs: Bivariate = NO_PAIRS
    rest: Moments = NOTHING
    requests: int = 0
    values: int = 0
    odd: int = 0

    def __add__(self, other: "Cell") -> "Cell":
        counts = self.requests + other.requests, self.values + other.values, self.odd + other.odd
        return Cell(self.pairs + other.pairs, self.rest + other.rest, *counts)


@dataclass(frozen=True)
class Tally:
    """cells: by arm, one for each look, of what was known then   tainted: units that saw several arms"""

    cells: Mapping[str, Sequence[Cell]]
    tainted: int

    def at(self, arm: str, look: int = -1) -> Cell:
        return self.cells[arm][look] if arm in self.cells else Cell()


class _Row(NamedTuple):
    """What a unit's requests in one arm came to that first showed at one look."""

    unit: str
    arm: str
    look: int
    requests: int
    values: int
    total: float


def tally(  # noqa: PLR0913 - one metric, in all the ways that it is looked at
    db: Database,
    span: Span,
    metric: Metric,
    ends: Sequence[float] = (math.inf,),
    before: tuple[float, float] | None = None,
    moving: bool = False,
) -> Tally:
    """One pass over a metric. Times are UTC, in seconds since 1970.

    ends: of the looks, rising; what comes after the last counts as seen at it. A request is seen when its outcome has come
    before: from when until when other experiments' values are a unit's past
    moving: units may change their arm, as a bandit's do, and count once in each; else those that did are left out
    """
    cells: dict[str, list[Cell]] = {}
    tainted = 0
    past = _past(db, span, metric, before) if before else iter(())
    groups = groupby(_rows(db, span, metric, ends), key=itemgetter(0, 1) if moving else itemgetter(0))
    units = _joined((list(rows) for _, rows in groups), past)
    while batch := list(islice(units, AT_ONCE)):
        by_arm: dict[str, list[tuple[list[_Row], float]]] = {}
        for rows, own_past in batch:
            if rows[0].arm != rows[-1].arm:
                tainted += 1
            else:
                by_arm.setdefault(rows[0].arm, []).append((rows, own_past))
        for arm, own in by_arm.items():
            new = _cells(own, metric.kind, len(ends))
            cells[arm] = [a + b for a, b in zip(cells[arm], new, strict=True)] if arm in cells else new
    return Tally(cells, tainted)


def _rows(db: Database, span: Span, metric: Metric, ends: Sequence[float]) -> Iterator[_Row]:
    value, source = measured(metric.name)
    late = [] if metric.name in BUILT_IN else [(outcomes.c.time > _e.time, outcomes.c.time)]
    seen = case(*late, else_=_e.time) if late else _e.time
    looks = [(seen <= end, i) for i, end in enumerate(ends[:-1])]
    look = case(*looks, else_=len(looks)) if looks else literal(0)
    per_unit = (
        select(_e.unit, _e.arm, look.label("look"), func.count(), func.count(value), func.coalesce(func.sum(value), 0.0))
        .select_from(source)
        .where(within(span))
        .group_by(_e.unit, _e.arm, "look")
        .order_by(_e.unit, _e.arm)
    )
    return (_Row(*row) for row in streamed(db, per_unit))


def _past(db: Database, span: Span, metric: Metric, times: tuple[float, float]) -> Iterator[tuple[str, float]]:
    """Units and what they did before, ordered by unit: in other experiments, since this one's arms are the same as now."""
    value, source = measured(metric.name)
    before = and_(_e.experiment != span.experiment, _e.time >= times[0], _e.time < times[1])
    sums = func.count(value), func.coalesce(func.sum(value), 0.0)
    rows = streamed(db, select(_e.unit, *sums).select_from(source).where(before).group_by(_e.unit).order_by(_e.unit))
    if metric.kind == "total":
        return ((unit, total) for unit, _, total in rows)
    return ((unit, total / values) for unit, values, total in rows if values)


def _joined(units: Iterable[list[_Row]], past: Iterator[tuple[str, float]]) -> Iterator[tuple[list[_Row], float]]:
    """Each unit's rows with its past, NaN for none. Both come ordered by unit."""
    waiting = next(past, None)
    for rows in units:
        while waiting is not None and waiting[0] < rows[0].unit:
            waiting = next(past, None)
        yield rows, waiting[1] if waiting is not None and waiting[0] == rows[0].unit else math.nan


def _cells(units: Sequence[tuple[list[_Row], float]], kind: str, looks: int) -> list[Cell]:
    """Of some units of one arm, by look."""
    rows = np.array([(i, *row[2:]) for i, (own, _) in enumerate(units) for row in own])
    place = rows[:, 0].astype(int), rows[:, 1].astype(int)
    requests, values, totals = np.zeros((3, len(units), looks))
    for array, column in ((requests, 2), (values, 3), (totals, 4)):
        array[place] = rows[:, column]
    past = np.array([before for _, before in units])
    sums = (array.cumsum(axis=1).T for array in (requests, values, totals))
    return [_cell(r, v, t, past, kind) for r, v, t in zip(*sums, strict=True)]


def _cell(requests: Array, values: Array, totals: Array, past: Array, kind: str) -> Cell:
    """Arrays: [units]"""
    there = requests > 0 if kind == "total" else values > 0
    outcome = totals if kind in ("total", "ratio") else totals / np.maximum(values, 1)
    odd = there & ((outcome < 0) | (outcome > 1)) if kind == "share" else np.zeros_like(there)
    there &= ~odd
    counts = int(requests.sum()), int(values.sum()), int(odd.sum())
    if kind == "ratio":
        return Cell(Bivariate.of(values[there], outcome[there]), NOTHING, *counts)
    known = there & ~np.isnan(past)
    return Cell(Bivariate.of(past[known], outcome[known]), Moments.of(outcome[there & ~known]), *counts)
