"""Thompson sampling in batches: an arm's weight is the probability that it is the best.

After Thompson 1933, and Chapelle & Li 2011. The posterior of an arm's mean is

- for a `share`, values in [0, 1]: Beta(1 + sum v, 1 + sum (1 - v)), a fractional outcome being so
  much of a success and the rest of a failure;
- else Normal(mean, (M2 + s^2) / n^2), s^2 the variance within all arms: as if one unit more had
  been off by a deviation, so that an arm of a few equal values is not held for certain.

P(a is best) = integral over u in (0, 1) of prod_(b != a) F_b(Q_a(u)), by the midpoint rule, with F
the distribution functions and Q_a the quantile function. An assignment that draws arms by these
weights until the next batch has them as its true propensities.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import beta, norm

from tta_serve.experiments.statistics.moments import AnalysisError, Moments

POINTS = (np.arange(2000) + 0.5) / 2000


def thompson(
    arms: Mapping[str, Moments], *, share: bool, explore: float, lower_is_better: bool = False
) -> dict[str, float]:
    """Return the arms' weights for the next batch, of sum 1.

    Arms have equal weights until each has two units.

    Args:
        share: Whether the metric is a `share`.
        explore: The least weight of an arm, from 0 to 1 / arms; an arm's weight is
            explore + (1 - arms * explore) P(best).

    Raises:
        AnalysisError: `explore` or the mean of a share cannot be.
    """
    if not 0 <= explore * len(arms) <= 1:
        raise AnalysisError(
            f"explore must be from 0 to {1 / len(arms):g} with {len(arms)} arms, not {explore:g}"
        )
    if min(arm.n for arm in arms.values()) < 2:
        return {name: 1 / len(arms) for name in arms}

    posteriors = _share_posteriors(arms) if share else _mean_posteriors(arms)
    best = {name: _chance_of_best(name, posteriors, lower_is_better) for name in arms}
    total = sum(best.values())
    return {name: explore + (1 - len(arms) * explore) * p / total for name, p in best.items()}


def _share_posteriors(arms: Mapping[str, Moments]) -> dict[str, Any]:
    if wrong := [name for name, arm in arms.items() if not 0 <= arm.mean <= 1]:
        raise AnalysisError(
            f"shares are in [0, 1], the mean of {', '.join(wrong)} is not; treat the metric as a"
            " mean"
        )
    return {
        name: beta(1 + arm.n * arm.mean, 1 + arm.n * (1 - arm.mean)) for name, arm in arms.items()
    }


def _mean_posteriors(arms: Mapping[str, Moments]) -> dict[str, Any]:
    within = sum(arm.m2 for arm in arms.values()) / sum(arm.n - 1 for arm in arms.values())
    least = 1e-9 * max(1.0, *(abs(arm.mean) for arm in arms.values()))  # a Normal needs a width
    return {
        name: norm(arm.mean, max(math.sqrt(arm.m2 + within) / arm.n, least))
        for name, arm in arms.items()
    }


def _chance_of_best(name: str, posteriors: Mapping[str, Any], lower_is_better: bool) -> float:
    values = posteriors[name].ppf(POINTS)
    beaten = [
        other.sf(values) if lower_is_better else other.cdf(values)
        for key, other in posteriors.items()
        if key != name
    ]
    return float(np.mean(np.prod(beaten, axis=0)))
