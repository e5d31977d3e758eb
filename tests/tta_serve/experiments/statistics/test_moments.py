"""Moments against numpy's, whole and merged."""

from itertools import pairwise

import numpy as np
import pytest

from tta_serve.experiments.statistics.moments import AnalysisError, Bivariate, Moments


def parts(rng: np.random.Generator, rows: int) -> list[slice]:
    """Consecutive pieces of unequal length, some of them empty, in another order."""
    cuts = [0, *sorted(rng.integers(0, rows, size=9)), 4, rows]
    cuts.sort()
    pieces = [slice(a, b) for a, b in pairwise(cuts)]
    return [pieces[i] for i in rng.permutation(len(pieces))]


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_moments_of_parts_in_any_order_are_those_of_the_whole(
    rng: np.random.Generator, offset: float
) -> None:
    values = rng.lognormal(size=200) + offset
    merged = sum((Moments.of(values[part]) for part in parts(rng, 200)), Moments())
    for found in (Moments.of(values), merged):
        assert found.n == 200
        assert found.mean == pytest.approx(values.mean(), rel=1e-14)
        assert found.variance == pytest.approx((values - offset).var(ddof=1), rel=1e-6)


def test_pairs_of_parts_in_any_order_have_the_covariance_of_the_whole(
    rng: np.random.Generator,
) -> None:
    x = rng.normal(size=150) + 5
    y = 2 * x + rng.exponential(size=150)
    merged = sum((Bivariate.of(x[part], y[part]) for part in parts(rng, 150)), Bivariate())
    for found in (Bivariate.of(x, y), merged):
        covariance = np.array([[found.x.m2, found.co], [found.co, found.y.m2]]) / (found.n - 1)
        np.testing.assert_allclose(covariance, np.cov(x, y), rtol=1e-12)
        assert (found.x.mean, found.y.mean) == pytest.approx((x.mean(), y.mean()))


def test_equal_values_do_not_vary_at_all() -> None:
    merged = Moments.of([0.1] * 7) + Moments.of([0.1] * 13)
    assert merged == Moments(20, 0.1, 0.0)
    assert Bivariate.of([0.1] * 7, range(7)).co == 0


def test_nothing_merges_with_everything() -> None:
    assert Moments.of([]) + Moments() == Moments()
    assert Bivariate.of([], []) + Bivariate() == Bivariate()
    assert Moments() + Moments.of([1, 2]) == Moments.of([1, 2]) + Moments() == Moments(2, 1.5, 0.5)
    assert np.isnan(Moments.of([3.0]).variance)


def test_values_that_are_not_finite_are_counted_and_refused() -> None:
    with pytest.raises(AnalysisError, match="2 of 3 values are NaN or infinite"):
        Moments.of([1.0, float("nan"), float("inf")])
