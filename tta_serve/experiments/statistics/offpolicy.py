"""What a policy would have been worth on traffic that another one has served.

Of each unit: p, the probability with which its arm was drawn; pi, the target policy's probability
of that arm; r, its reward. With w = pi / p, and x = min(w, clip),

    IPS = mean(w r)        SNIPS = sum(w r) / sum(w)        ESS = (sum w)^2 / sum(w^2)

IPS (Horvitz & Thompson 1952) has no bias; SNIPS (Swaminathan & Joachims 2015), a ratio with the
delta method's variance, has one of order 1/n and mostly less variance. Their intervals are normal
ones for a look at a fixed number of units, and too narrow where ESS is small. The third does not
rest on normality: for rewards in [0, 1], empirical Bernstein bounds (Maurer & Pontil 2009, theorem
4) on clipped weights, valid for any n and also where the log does not cover the target, as E[x r]
<= value <= 1 - E[x (1 - r)].

A unit is what was assigned. If it made several requests, its reward is their mean: rows that share
a draw are not independent.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.stats import norm

from tta_serve.experiments.statistics.moments import (
    NO_PAIRS,
    NOTHING,
    AnalysisError,
    Bivariate,
    Moments,
    finite,
)
from tta_serve.experiments.statistics.ratio import ratio


@dataclass(frozen=True)
class Range:
    """An estimate and its interval of level 1 - alpha."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Replay:
    """Sums over logged units, mergeable in any order."""

    clip: float
    """The largest weight in clipped estimates."""
    weighed: Bivariate = NO_PAIRS
    """The moments of the pairs (w, w r)."""
    kept: Moments = NOTHING
    """The moments of min(w, clip) r."""
    lost: Moments = NOTHING
    """The moments of min(w, clip) (1 - r)."""
    inside: bool = True
    """Whether every reward is in [0, 1]."""

    @classmethod
    def of(
        cls,
        propensities: Iterable[float],
        targets: Iterable[float],
        rewards: Iterable[float],
        clip: float = 20.0,
    ) -> Self:
        """Return the sums over some units: p, pi and r of each.

        Raises:
            AnalysisError: A propensity is missing (NaN) or not in (0, 1], or a target's
                probability is not in [0, 1].
        """
        p = np.asarray(list(propensities), dtype=np.float64)
        pi = np.asarray(list(targets), dtype=np.float64)
        r = finite(rewards)
        assert len(p) == len(pi) == len(r)
        if wrong := int((~((p > 0) & (p <= 1))).sum()):
            raise AnalysisError(
                f"{wrong} of {len(p)} logged propensities are missing or not in (0, 1]; only units"
                " whose arm was drawn with a known probability can be replayed"
            )
        if wrong := int((~((pi >= 0) & (pi <= 1))).sum()):
            raise AnalysisError(
                f"{wrong} of {len(pi)} of the target policy's probabilities are not in [0, 1]"
            )
        w = pi / p
        x = np.minimum(w, clip)
        inside = bool(((r >= 0) & (r <= 1)).all())
        return cls(clip, Bivariate.of(w, w * r), Moments.of(x * r), Moments.of(x * (1 - r)), inside)

    def __add__(self, other: "Replay") -> "Replay":
        """Merge the sums of two disjoint groups of units."""
        assert self.clip == other.clip
        return Replay(
            self.clip,
            self.weighed + other.weighed,
            self.kept + other.kept,
            self.lost + other.lost,
            self.inside and other.inside,
        )

    @property
    def n(self) -> int:
        """How many units there are."""
        return self.weighed.n

    @property
    def effective(self) -> float:
        """The effective sample size in units, 0 if the target has none of the logged actions."""
        w = self.weighed.x
        squares = w.m2 + w.n * w.mean**2
        return (w.n * w.mean) ** 2 / squares if squares else 0.0

    def ips(self, alpha: float = 0.05) -> Range:
        """Return the IPS estimate; what the log does not cover counts as a reward of 0."""
        return normal(self.weighed.y, alpha)

    def snips(self, alpha: float = 0.05) -> Range:
        """Return the SNIPS estimate of the part that the log covers, as if that were all.

        Raises:
            AnalysisError: The log covers nothing.
        """
        return normal(ratio(self.weighed), alpha)

    def covered(self, alpha: float = 0.05) -> Range:
        """Return the mean of w: the share of the target's decisions that the log may contain.

        Its expectation is 1 under full support; an interval below 1 says that the share
        1 - estimate of the target's decisions cannot be judged.
        """
        return normal(self.weighed.x, alpha)

    def bernstein(self, alpha: float = 0.05) -> Range:
        """Return clipped IPS, the mean of min(w, clip) r, with empirical Bernstein bounds.

        Raises:
            AnalysisError: A reward is not in [0, 1].
        """
        if not self.inside:
            raise AnalysisError(
                "rewards must be in [0, 1] for this interval; scale them, or take another one"
            )
        low = self._lower_bound(self.kept, alpha)
        high = 1 - self._lower_bound(self.lost, alpha)
        return Range(self.kept.mean, low, high)

    def _lower_bound(self, x: Moments, alpha: float) -> float:
        """Return a bound below the expectation of x in [0, clip] with probability 1 - alpha / 2.

        It is at least 0:

            mean - sqrt(2 var ln(4 / alpha) / n) - 7 clip ln(4 / alpha) / (3 (n - 1))
        """
        if x.n < 2:
            return 0.0
        log = math.log(4 / alpha)
        deviation = math.sqrt(2 * x.variance * log / x.n)
        return max(0.0, x.mean - deviation - 7 * self.clip * log / (3 * (x.n - 1)))


def normal(x: Moments, alpha: float) -> Range:
    """Return mean -+ z sqrt(var / n), without bounds for fewer than two units."""
    half = float(norm.isf(alpha / 2)) * math.sqrt(x.variance / x.n) if x.n > 1 else math.inf
    return Range(x.mean, x.mean - half, x.mean + half)
