"""Tests and intervals that hold however often one looks.

One may stop at any unit, for any reason, and the error rate is still alpha. An estimate d of
variance V (of the estimate, not of a unit) after t units has, with r = rho^2 t, the confidence
sequence and the p-value

    d +- sqrt( V (1 + 1/r) ln((1 + r) / alpha^2) )
    p = min(1, sqrt(1 + r) exp(-(d - null)^2 / V * r / (2 (1 + r))))

This is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (arXiv
2103.06476, theorem 2.2), whose inverse is the mixture sequential probability ratio test of Johari,
Pekelis & Walsh (arXiv 1512.04922; the variance tau^2 of their mixture over the true effect is
r V). p <= alpha exactly where the interval leaves `null` out.

- `target`, the units per arm at which the interval shall be tightest, fixes rho: the width at
  t = target is least for the r that solves ln((1 + r) / alpha^2) = r, which is
  -W_-1(-alpha^2 / e) - 1 with Lambert's W. It must not be changed once data are seen. At
  alpha = 0.05 a target ten times too large makes the interval a quarter wider, one ten times too
  small 7 %; neither is wrong.
- The guarantee is asymptotic: it needs a mean near normal and a variance near its true value,
  hence `burn_in`. Before so many units in every arm nothing is claimed: the interval is infinite
  and p is 1.
- For two arms t = 2 / (1/n_a + 1/n_b), the harmonic mean of their sizes, so that both kinds of
  comparison share one target.
- It presumes that a unit's arm does not depend on earlier outcomes. What a bandit has logged is
  for `offpolicy`.
- Metrics of a known range, such as success rates, go through `pad_range` first. Without it an arm
  that has not met its first rare event claims not to vary: of simulated experiments with arms of
  9 : 1 and equal rates of 1 %, 31 % found a difference, and 9 % missed a single rate of 5 %. With
  it rates from 0.3 to 50 % keep alpha, in arms up to 9 : 1.
- Without a range, values as skewed as exponential ones keep alpha. Very skewed ones (lognormal
  with sigma = 1) do so as a difference of arms up to 4 : 1, but not at 9 : 1 (7 % instead of 5 %)
  nor as the mean of one arm (8 %): take their logarithm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from scipy.special import lambertw

from tta_serve.experiments.statistics.moments import Array, Moments

PRIOR_MISSES = 4  # 2 break alpha in simulations, 3 barely keep it
Values = TypeVar("Values", float, Array)


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence sequence, from `low` to `high`."""

    estimate: float
    low: float
    high: float
    p: float
    """The p-value, valid at every look; the least one of all looks is valid too."""


@dataclass(frozen=True)
class Sequential:
    """A test that may be looked at after every unit."""

    target: int
    """Units per arm at which the interval is tightest."""
    alpha: float = 0.05
    """The error rate, of all looks together."""
    burn_in: int = 100
    """Units per arm before any claim."""

    def __post_init__(self) -> None:
        assert 0 < self.alpha < 1
        assert self.target >= 1
        assert self.burn_in >= 2

    @cached_property
    def rho2(self) -> float:
        """rho^2, per unit."""
        return (-float(lambertw(-(self.alpha**2) / math.e, -1).real) - 1) / self.target

    def boundary(self, units: Values) -> Values:
        """Return how many standard errors the interval goes to either side after some units."""
        r = self.rho2 * units
        half: Values = np.sqrt((1 + 1 / r) * (np.log1p(r) - 2 * math.log(self.alpha)))
        return half

    def p_value(self, z: Values, units: Values) -> Values:
        """Return the always valid p-value after some units.

        Args:
            z: (estimate - null) / standard error.
        """
        r = self.rho2 * units
        p: Values = np.minimum(1.0, np.sqrt(1 + r) * np.exp(-(z**2) * r / (2 * (1 + r))))
        return p

    def mean(self, arm: Moments, *, null: float = 0.0) -> Interval:
        """Return the mean of one arm.

        Args:
            null: The mean that p is the p-value of.
        """
        return self._interval(arm.mean, (arm,), null)

    def difference(self, control: Moments, treatment: Moments) -> Interval:
        """Return the treatment's mean less the control's; p is for "no difference"."""
        return self._interval(treatment.mean - control.mean, (control, treatment), 0.0)

    def _interval(self, estimate: float, arms: Sequence[Moments], null: float) -> Interval:
        if min(arm.n for arm in arms) < self.burn_in:
            return Interval(estimate, -math.inf, math.inf, 1.0)
        units = len(arms) / sum(1 / arm.n for arm in arms)
        error = math.sqrt(sum(arm.variance / arm.n for arm in arms))
        away = estimate - null
        z = away / error if error else math.inf * away if away else 0.0
        half = error * float(self.boundary(units))
        return Interval(estimate, estimate - half, estimate + half, float(self.p_value(z, units)))


def pad_range(arm: Moments, span: float) -> Moments:
    """Return the moments of a metric of known range as a `Sequential` test needs them.

    That is with M2 + 4 span^2, as if four more units had missed the mean by the whole range.

    Args:
        span: The range: 1 for a success rate or a score in [0, 1], 0 where there is none.
    """
    return replace(arm, m2=arm.m2 + PRIOR_MISSES * span**2)
