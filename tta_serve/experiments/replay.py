"""What another policy would have been worth on an experiment's logged traffic, by `router.experiments.offpolicy`.

What is estimated is the mean over units of a unit's mean reward, or of its sum for a metric of kind `total`. All requests of a
unit enter as one, w and w r averaged over them, since they share the draw of their arm; where a bandit has moved a unit, its
requests have propensities of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from sqlalchemy import func, select

from router.experiments.definition import Metric
from router.experiments.moments import NOTHING, AnalysisError, Array, Bivariate, Moments
from router.experiments.offpolicy import Replay, normal
from tta_serve.experiments.logs import AT_ONCE
from tta_serve.experiments.results import Estimate, Replayed
from tta_serve.store.database import Database
from tta_serve.store.measures import Span, measured, streamed, within
from tta_serve.store.tables import exposures

CLIP = 20.0
Target = Callable[[str, str], float]  # (request id, arm) -> the probability with which the policy would have drawn the arm
_e = exposures.c


class _Row(NamedTuple):
    unit: str
    request_id: str
    arm: str
    propensity: float
    value: float


def replay(  # noqa: PLR0913 - what is judged, and how sharply
    db: Database, span: Span, metric: Metric, target: Target, *, alpha: float = 0.05, clip: float = CLIP
) -> Replayed:
    """Two passes over the exposures. clip: of weights, where an estimate clips them

    Raises AnalysisError where no request has a value of the metric, and for a propensity or probability that is none.
    """
    total, served, requests = Replay(clip), NOTHING, 0
    units = (list(own) for _, own in groupby(_rows(db, span, metric), key=itemgetter(0)))
    while batch := list(islice(units, AT_ONCE)):
        new, rewards = _replayed(batch, target, metric.kind == "total", clip)
        total, served, requests = total + new, served + rewards, requests + sum(map(len, batch))
    if not total.n:
        raise AnalysisError(f"no request of {span.experiment!r} has a value of {metric.name!r}; there is nothing to replay")
    return Replayed(
        metric=metric.name,
        units=total.n,
        requests=requests,
        without=_requests(db, span) - requests,
        served=Estimate.of(normal(served, alpha)),
        ips=Estimate.of(total.ips(alpha)),
        snips=Estimate.of(total.snips(alpha)) if total.effective else None,
        clipped=Estimate.of(total.bernstein(alpha)) if total.inside else None,
        clip=clip,
        effective=total.effective,
        covered=Estimate.of(total.covered(alpha)),
    )


def _replayed(batch: Sequence[Sequence[_Row]], target: Target, summed: bool, clip: float) -> tuple[Replay, Moments]:
    """Of some units, and the moments of their rewards."""
    rows = [row for own in batch for row in own]
    sizes = np.array([len(own) for own in batch])
    p = np.array([row.propensity for row in rows])
    pi = np.array([target(row.request_id, row.arm) for row in rows])
    r = np.array([row.value for row in rows]) * (np.repeat(sizes, sizes) if summed else 1)
    checked = Replay.of(p, pi, r, clip)
    starts = np.cumsum(sizes) - sizes

    def mean(values: Array) -> Array:
        means: Array = np.add.reduceat(values, starts) / sizes
        return means

    w = pi / p
    x = np.minimum(w, clip)
    pairs, kept, lost = Bivariate.of(mean(w), mean(w * r)), Moments.of(mean(x * r)), Moments.of(mean(x * (1 - r)))
    return Replay(clip, pairs, kept, lost, checked.inside), Moments.of(mean(r))


def _rows(db: Database, span: Span, metric: Metric) -> Iterator[_Row]:
    """Of requests with a value, which for a total are all, ordered by unit."""
    value, source = measured(metric.name)
    found = func.coalesce(value, 0.0) if metric.kind == "total" else value
    rows = select(_e.unit, _e.request_id, _e.arm, _e.propensity, found).select_from(source)
    return (_Row(*row) for row in streamed(db, rows.where(within(span), found.is_not(None)).order_by(_e.unit)))


def _requests(db: Database, span: Span) -> int:
    with db.read() as connection:
        return connection.execute(select(func.count()).where(within(span))).scalar_one()
