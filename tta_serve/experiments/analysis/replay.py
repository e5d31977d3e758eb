"""What another policy would have been worth on an experiment's logged traffic.

The estimates are those of `tta_serve.experiments.statistics.offpolicy`. What is estimated is the
mean over units of a unit's mean reward, or of its sum for a metric of kind `total`. All requests of
a unit enter as one, w and w r averaged over them, since they share the draw of their arm; where a
bandit has moved a unit, its requests have propensities of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from sqlalchemy import func, select

from tta_serve.experiments.analysis.results import Estimate, ReplayResult
from tta_serve.experiments.analysis.tallies import AT_ONCE
from tta_serve.experiments.design.definition import Metric
from tta_serve.experiments.statistics.moments import (
    NOTHING,
    AnalysisError,
    Array,
    Bivariate,
    Moments,
)
from tta_serve.experiments.statistics.offpolicy import Replay, normal
from tta_serve.store.database import Database
from tta_serve.store.measures import match_span, select_metric, stream_rows
from tta_serve.store.records import Span
from tta_serve.store.schema import exposures

CLIP = 20.0
Target = Callable[[str, str], float]
"""(request id, arm) -> the probability with which the policy would have drawn the arm"""
_e = exposures.c


class _Row(NamedTuple):
    """A request with a value."""

    unit: str
    request_id: str
    arm: str
    propensity: float
    value: float


def replay(  # noqa: PLR0913 - what is judged, and how sharply
    db: Database,
    span: Span,
    metric: Metric,
    target: Target,
    *,
    alpha: float = 0.05,
    clip: float = CLIP,
) -> ReplayResult:
    """Estimate what a policy would have been worth, in two passes over the exposures.

    Args:
        target: The policy.
        clip: The largest weight, where an estimate clips them.

    Raises:
        AnalysisError: No request has a value of the metric, or a propensity or probability is none.
    """
    total = Replay(clip)
    served = NOTHING
    requests = 0
    units = (list(own) for _, own in groupby(_read_rows(db, span, metric), key=itemgetter(0)))
    while batch := list(islice(units, AT_ONCE)):
        sums, rewards = _replay_units(batch, target, metric.kind == "total", clip)
        total += sums
        served += rewards
        requests += sum(map(len, batch))
    if not total.n:
        raise AnalysisError(
            f"no request of {span.experiment!r} has a value of {metric.name!r}; there is nothing to"
            " replay"
        )
    return ReplayResult(
        metric=metric.name,
        units=total.n,
        requests=requests,
        without=_count_requests(db, span) - requests,
        served=Estimate.of(normal(served, alpha)),
        ips=Estimate.of(total.ips(alpha)),
        snips=Estimate.of(total.snips(alpha)) if total.effective else None,
        clipped=Estimate.of(total.bernstein(alpha)) if total.inside else None,
        clip=clip,
        effective=total.effective,
        covered=Estimate.of(total.covered(alpha)),
    )


def _replay_units(
    batch: Sequence[Sequence[_Row]], target: Target, summed: bool, clip: float
) -> tuple[Replay, Moments]:
    """Return the sums of some units, and the moments of their rewards.

    Args:
        batch: The rows of each unit.
        summed: Whether a unit's reward is the sum of its values, not their mean.
    """
    # One number a request.
    rows = [row for own in batch for row in own]
    sizes = np.array([len(own) for own in batch])
    p = np.array([row.propensity for row in rows])
    pi = np.array([target(row.request_id, row.arm) for row in rows])
    r = np.array([row.value for row in rows]) * (np.repeat(sizes, sizes) if summed else 1)
    checked = Replay.of(p, pi, r, clip)
    w = pi / p
    x = np.minimum(w, clip)

    # One number a unit: the mean over its requests.
    starts = np.cumsum(sizes) - sizes

    def mean(values: Array) -> Array:
        means: Array = np.add.reduceat(values, starts) / sizes
        return means

    sums = Replay(
        clip=clip,
        weighed=Bivariate.of(mean(w), mean(w * r)),
        kept=Moments.of(mean(x * r)),
        lost=Moments.of(mean(x * (1 - r))),
        inside=checked.inside,
    )
    return sums, Moments.of(mean(r))


def _read_rows(db: Database, span: Span, metric: Metric) -> Iterator[_Row]:
    """Yield the requests with a value, which for a total are all, ordered by unit."""
    value, source = select_metric(metric.name)
    reward = func.coalesce(value, 0.0) if metric.kind == "total" else value
    rows = (
        select(_e.unit, _e.request_id, _e.arm, _e.propensity, reward)
        .select_from(source)
        .where(match_span(span), reward.is_not(None))
        .order_by(_e.unit)
    )
    return (_Row(*row) for row in stream_rows(db, rows))


def _count_requests(db: Database, span: Span) -> int:
    with db.read() as connection:
        return connection.execute(select(func.count()).where(match_span(span))).scalar_one()
