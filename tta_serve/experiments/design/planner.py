"""How many units an experiment needs, and which effect it can see, before it starts.

A design gives the power: the probability of finding a difference d with n units in each arm. With
v = var(control) + var(treatment) of a unit, the estimate is away = d / sqrt(v / n) standard errors
from 0, on average. For arms of different sizes read n as their harmonic mean,
2 / (1/n_a + 1/n_b), which is exact for equal variances.

- `fixed_design`, a z-test with one look at the end: power = Phi(away - z) + Phi(-away - z) with
  z = Phi^-1(1 - alpha/2).
- `peeking_design`, `Sequential` looked at all the time until n units are there:
  power = 1 - E[undecided(u)] over u ~ Normal(away, 1), where undecided(u) is the probability that
  no look has found anything if the last one sees u. Given u the path to it is a Brownian bridge,
  whatever the effect, so that `undecided` is computed once for all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from tta_serve.experiments.statistics.moments import AnalysisError, Array
from tta_serve.experiments.statistics.sequential import PRIOR_MISSES, Sequential

MOST = 10**9  # units per arm
NOISE = 0.1  # least standard deviation of what is new at a look, in standard errors
STEP = NOISE / 2  # of the grid of u
# In standard errors: with the last boundary this far away, those before it, further, add nothing.
FAR = 12.0
OVERSHOOT = 0.5826  # -zeta(1/2) / sqrt(2 pi)


class PlannedMetric(Protocol):
    """What is known of a metric beforehand."""

    @property
    def span(self) -> float:
        """The metric's range, 0 where it has none."""
        ...

    @property
    def largest(self) -> float:
        """The largest increase that is possible."""
        ...

    def variance(self, difference: float) -> float:
        """Return v, per unit, if the arms differ by so much."""
        ...


Design = Callable[[PlannedMetric, float, int], float]
"""(metric, difference, units per arm) -> power"""


@dataclass(frozen=True)
class Mean:
    """A mean of units, whose standard deviation is the same in both arms."""

    sd: float
    """The standard deviation of a unit."""
    span: float = 0.0
    """The range of a unit's value, 0 where it has none."""

    def __post_init__(self) -> None:
        if not 0 < self.sd < math.inf:
            raise AnalysisError(f"a standard deviation must be above 0, not {self.sd:g}")

    @property
    def largest(self) -> float:
        return 40 * self.sd  # which two units cannot miss

    def variance(self, difference: float) -> float:
        return 2 * self.sd**2


@dataclass(frozen=True)
class Rate:
    """A share of units that succeed."""

    base: float
    """The control's share."""
    span: float = 1.0
    """The range of a unit's value."""

    def __post_init__(self) -> None:
        if not 0 < self.base < 1:
            raise AnalysisError(f"a base rate must be above 0 and below 1, not {self.base:g}")

    @property
    def largest(self) -> float:
        return 1 - self.base

    def variance(self, difference: float) -> float:
        rate = self.base + difference
        if not 0 <= rate <= 1:
            raise AnalysisError(
                f"a rate of {self.base:g} can change by {-self.base:g} to {self.largest:g}, not"
                f" {difference:g}"
            )
        return self.base * (1 - self.base) + rate * (1 - rate)


def fixed_design(alpha: float) -> Design:
    """Return the design of one look at the end."""
    z = norm.isf(alpha / 2)

    def power(metric: PlannedMetric, difference: float, n: int) -> float:
        away = difference / math.sqrt(metric.variance(difference) / n)
        return float(norm.cdf(away - z) + norm.cdf(-away - z))

    return power


def peeking_design(test: Sequential) -> Design:
    """Return the design of a test that stops as soon as it finds something.

    Otherwise it stops at n units per arm.
    """

    def power(metric: PlannedMetric, difference: float, n: int) -> float:
        if n < test.burn_in:
            return 0.0
        variance = metric.variance(difference) + 2 * PRIOR_MISSES * metric.span**2 / n
        away = difference / math.sqrt(variance / n)
        u, undecided = _undecided(test, n)
        return float(1 - undecided @ norm.pdf(u, away) * STEP)

    return power


def tuned_design(test: Sequential) -> Design:
    """Return `peeking_design` with n as the test's target, for as long as that is still free."""

    def power(metric: PlannedMetric, difference: float, n: int) -> float:
        return peeking_design(replace(test, target=n))(metric, difference, n)

    return power


def units_needed(
    design: Design, metric: PlannedMetric, difference: float, power: float = 0.8
) -> int:
    """Return the least number of units per arm that find a difference with probability `power`.

    Raises:
        AnalysisError: The difference is 0, not possible, or so small that it takes over 10^9 units.
    """
    # Double until there are enough units, then halve the gap.
    too_few = 0
    enough = 1
    while not design(metric, difference, enough) >= power:
        too_few = enough
        enough *= 2
        if enough > MOST:
            raise AnalysisError(
                f"to find a difference of {difference:g} takes over {MOST} units per arm; ask for a"
                " larger one"
            )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if design(metric, difference, middle) >= power:
            enough = middle
        else:
            too_few = middle
    return enough


def detectable_difference(
    design: Design, metric: PlannedMetric, n: int, power: float = 0.8
) -> float:
    """Return the least increase that n units per arm find with probability `power`.

    Raises:
        AnalysisError: There is none.
    """
    if not design(metric, 0.0, n) < power <= design(metric, metric.largest, n):
        raise AnalysisError(
            f"with {n} units per arm no increase is found with probability {power:g}; it takes more"
            " units"
        )

    def missing_power(difference: float) -> float:
        return design(metric, difference, n) - power

    return float(brentq(missing_power, 0.0, metric.largest))


@lru_cache(maxsize=32)
def _undecided(test: Sequential, n: int) -> tuple[Array, Array]:
    """Return a grid of u, and `undecided` on it, by Armitage, McPherson & Rowe's recursion (1969).

    Looks are at times that grow by a factor q. Given u now, the look before has seen Normal(u /
    sqrt(q), 1 - 1/q). The boundary is moved inwards by what looks in between would have found
    (Siegmund 1985).
    """
    last = float(test.boundary(float(n)))
    u = np.arange(-last - 3, last + 3, STEP, dtype=np.float64)
    looks = int(math.log(n / test.burn_in) / -math.log1p(-(NOISE**2))) if last < FAR else 0
    times = np.geomspace(test.burn_in, n, looks + 1) if looks else np.array([n], dtype=float)
    undecided = _share_inside(u, test.boundary(times[0]))
    if looks:
        q = times[1] / times[0]
        noise = math.sqrt(1 - 1 / q)
        carry = norm.pdf(u, u[:, None] / math.sqrt(q), noise) * STEP
        for boundary in test.boundary(times[1:]):
            undecided = carry @ undecided * _share_inside(u, boundary - OVERSHOOT * noise)
    return u, undecided


def _share_inside(u: Array, boundary: float) -> Array:
    """Return the share of each of the grid's cells that lies inside the boundary."""
    return np.clip((boundary - np.abs(u)) / STEP + 0.5, 0, 1)
