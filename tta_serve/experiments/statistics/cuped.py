"""CUPED: a metric less what a covariate from before the experiment explains of it.

After Deng, Xu, Kohavi & Walker (WSDM 2013):

    y' = y - theta (x - mean(x))          with mean(x) over all arms
    theta = sum over arms C_xy / sum over arms M2_x

The arms share theta and mean(x), so that a difference of arms keeps its expectation; its variance
falls by the factor 1 - corr(x, y)^2. Units without a past keep their y, which is what mean(x) in
the place of their x would do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tta_serve.experiments.statistics.moments import Bivariate, Moments


@dataclass(frozen=True)
class Adjusted:
    """The moments of a metric in each arm, adjusted by the past where there is one."""

    arms: Mapping[str, Moments]
    """The adjusted moments, by arm."""
    theta: float
    """The factor that was used, 0 where none was."""
    unused: str = ""
    """Why the moments are the plain ones, "" if they are not."""


def cuped(known: Mapping[str, Bivariate], unknown: Mapping[str, Moments]) -> Adjusted:
    """Return the moments of y' in each arm.

    Args:
        known: Covariate x and outcome y of the units with a past, by arm.
        unknown: Outcomes of the units without one, by arm.
    """
    total = sum(known.values(), Bivariate())
    within = sum(pairs.x.m2 for pairs in known.values())
    theta = sum(pairs.co for pairs in known.values()) / within if within else 0.0
    arms = {
        name: (
            _adjusted(known.get(name, Bivariate()), theta, total.x.mean)
            + unknown.get(name, Moments())
        )
        for name in {**known, **unknown}
    }
    missing = (
        "no unit has a value of the covariate"
        if not total.n
        else "the covariate is the same for all units of an arm"
    )
    return Adjusted(arms, theta, "" if within else missing)


def _adjusted(pairs: Bivariate, theta: float, center: float) -> Moments:
    mean = pairs.y.mean - theta * (pairs.x.mean - center)
    m2 = pairs.y.m2 - 2 * theta * pairs.co + theta**2 * pairs.x.m2
    return Moments(pairs.n, mean, max(m2, 0.0))
