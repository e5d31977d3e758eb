"""Counts, means and central second moments: all that an analysis reads of the units of an arm.

They merge in any order, so that a report adds up batches of a stream and never holds its rows. The
update is the pairwise one of Chan, Golub & LeVeque 1979 ("Updating formulae and a pairwise
algorithm for computing sample variances"), with d = mean_b - mean_a:

    n = n_a + n_b      mean = mean_a + d n_b / n      M2 = M2_a + M2_b + d^2 n_a n_b / n
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tta_serve.experiments.errors import ExperimentError

Array = np.ndarray[Any, np.dtype[np.float64]]


class AnalysisError(ExperimentError):
    """A statistic cannot be had from these numbers; the message says which ones would do."""


@dataclass(frozen=True)
class Moments:
    """The count, mean and central second moment of one value a unit."""

    n: int = 0
    """How many units there are."""
    mean: float = 0.0
    """The mean of their values."""
    m2: float = 0.0
    """The sum of (value - mean)^2."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the moments of some values.

        Raises:
            AnalysisError: A value is not finite.
        """
        array = finite(values)
        if not len(array):
            return cls()
        beyond = array - array[0]  # so that equal values have a variance of exactly 0
        return cls(len(array), float(array[0] + beyond.mean()), float(beyond.var() * len(array)))

    def __add__(self, other: "Moments") -> "Moments":
        """Merge the moments of two disjoint groups of units."""
        n = self.n + other.n
        if not n:
            return self
        apart = other.mean - self.mean
        return Moments(
            n, self.mean + apart * other.n / n, self.m2 + other.m2 + apart**2 * self.n * other.n / n
        )

    @property
    def variance(self) -> float:
        """M2 / (n - 1); NaN for fewer than two units."""
        return self.m2 / (self.n - 1) if self.n > 1 else float("nan")


NOTHING = Moments()


@dataclass(frozen=True)
class Bivariate:
    """The moments of one pair of values (x, y) a unit."""

    x: Moments = NOTHING
    """The moments of a ratio's denominator, or of a covariate."""
    y: Moments = NOTHING
    """The moments of the ratio's numerator, or of the outcome."""
    co: float = 0.0
    """The sum of (x - mean(x)) (y - mean(y))."""

    @classmethod
    def of(cls, x: Iterable[float], y: Iterable[float]) -> Self:
        """Return the moments of some pairs.

        Raises:
            AnalysisError: A value is not finite.
        """
        xs = finite(x)
        ys = finite(y)
        assert len(xs) == len(ys)

        of_x = Moments.of(xs)
        of_y = Moments.of(ys)
        return cls(of_x, of_y, float((xs - of_x.mean) @ (ys - of_y.mean)))

    def __add__(self, other: "Bivariate") -> "Bivariate":
        """Merge the moments of two disjoint groups of units."""
        n = self.n + other.n
        if not n:
            return self
        apart = (other.x.mean - self.x.mean) * (other.y.mean - self.y.mean)
        return Bivariate(
            self.x + other.x, self.y + other.y, self.co + other.co + apart * self.n * other.n / n
        )

    @property
    def n(self) -> int:
        """How many units there are."""
        return self.x.n


NO_PAIRS = Bivariate()


def finite(values: Iterable[float]) -> Array:
    """Return the values as an array.

    Raises:
        AnalysisError: A value is NaN or infinite.
    """
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    if not np.isfinite(array).all():
        raise AnalysisError(
            f"{int((~np.isfinite(array)).sum())} of {len(array)} values are NaN or infinite; leave"
            " them out"
        )
    return array
