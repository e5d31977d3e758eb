"""The delta method against the jackknife."""

import numpy as np
import pytest

from tta_serve.experiments.statistics.moments import AnalysisError, Bivariate, Moments
from tta_serve.experiments.statistics.ratio import ratio


def test_a_ratio_has_the_variance_that_the_jackknife_finds(rng: np.random.Generator) -> None:
    requests = rng.poisson(4, size=4000) + 1.0
    errors = rng.binomial(requests.astype(int), rng.beta(2, 8, size=4000)).astype(float)
    found = ratio(Bivariate.of(requests, errors))
    left_out = (errors.sum() - errors) / (requests.sum() - requests)
    assert found.mean == pytest.approx(errors.sum() / requests.sum())
    assert found.variance / found.n == pytest.approx(
        3999 / 4000 * ((left_out - left_out.mean()) ** 2).sum(), rel=2e-3
    )


def test_requests_of_a_user_do_not_count_as_independent(rng: np.random.Generator) -> None:
    requests = np.full(500, 20.0)
    errors = requests * (rng.random(500) < 0.1)  # a user has only errors or none
    rate = errors.sum() / requests.sum()
    assert ratio(Bivariate.of(requests, errors)).variance / 500 == pytest.approx(
        rate * (1 - rate) / 499
    )


def test_over_equal_denominators_a_ratio_is_a_mean(rng: np.random.Generator) -> None:
    y = rng.normal(size=50)
    plain, found = Moments.of(y), ratio(Bivariate.of(np.ones(50), y))
    assert (found.n, found.mean, found.m2) == pytest.approx((50, plain.mean, plain.m2))


def test_no_denominators() -> None:
    assert ratio(Bivariate()) == Moments()
    with pytest.raises(AnalysisError, match="sum to 0"):
        ratio(Bivariate.of([0, 0], [1, 2]))
