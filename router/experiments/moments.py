"""Counts, means and central second moments: all that an analysis reads of the units of an arm.

They merge in any order, so that a report adds up batches of a stream and never holds its rows. The update is the pairwise
one of Chan, Golub & LeVeque 1979 ("Updating formulae and a pairwise algorithm for computing sample variances"), d = mean_b -
mean_a:

    n = n_a + n_b      mean = mean_a + d n_b / n      M2 = M2_a + M2_b + d^2 n_a n_b / n
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from router.policy import RouterError

Array = np.ndarray[Any, np.dtype[np.float64]]


class AnalysisError(RouterError):
    """A statistic is asked of numbers that it cannot be had from; the message says which ones would do."""


@dataclass(frozen=True)
class Moments:
    """n: how many units   mean: of their values   m2: sum of (value - mean)^2"""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Raises AnalysisError for a value that is not finite."""
        array = finite(values)
        if not len(array):
            return cls()
        beyond = array - array[0]  # so that equal values have a variance of exactly 0
        return cls(len(array), float(array[0] + beyond.mean()), float(beyond.var() * len(array)))

    def __add__(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        if not n:
            return self
        apart = other.mean - self.mean
        return Moments(n, self.mean + apart * other.n / n, self.m2 + other.m2 + apart**2 * self.n * other.n / n)

    @property
    def variance(self) -> float:
        """M2 / (n - 1); NaN for fewer than two units."""
        return self.m2 / (self.n - 1) if self.n > 1 else float("nan")


NOTHING = Moments()


@dataclass(frozen=True)
class Bivariate:
    """The moments of pairs.

    x: of a ratio's denominator, or of a covariate   y: of its numerator, or of the outcome   co: sum of (x - mean)(y - mean)
    """

    x: Moments = NOTHING
    y: Moments = NOTHING
    co: float = 0.0

    @classmethod
    def of(cls, x: Iterable[float], y: Iterable[float]) -> Self:
        """Raises AnalysisError for a value that is not finite."""
        xs, ys = finite(x), finite(y)
        assert len(xs) == len(ys)
        mx, my = Moments.of(xs), Moments.of(ys)
        return cls(mx, my, float((xs - mx.mean) @ (ys - my.mean)))

    def __add__(self, other: "Bivariate") -> "Bivariate":
        n = self.n + other.n
        if not n:
            return self
        apart = (other.x.mean - self.x.mean) * (other.y.mean - self.y.mean)
        return Bivariate(self.x + other.x, self.y + other.y, self.co + other.co + apart * self.n * other.n / n)

    @property
    def n(self) -> int:
        return self.x.n


NO_PAIRS = Bivariate()


def finite(values: Iterable[float]) -> Array:
    """The values as an array. Raises AnalysisError if one is NaN or infinite."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    if not np.isfinite(array).all():
        raise AnalysisError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are NaN or infinite; leave them out")
    return array
