"""The closed forms of the sequential test. How often it errs is in test_simulated.py."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from tta_serve.experiments.statistics.moments import Moments
from tta_serve.experiments.statistics.sequential import Interval, Sequential, pad_range

TEST = Sequential(target=400, alpha=0.05, burn_in=20)


def test_the_interval_of_a_mean_is_the_papers(rng: np.random.Generator) -> None:
    x = Moments.of(rng.normal(3, 2, size=130))
    t, rho2 = x.n, TEST.rho2
    half = math.sqrt(
        x.variance * 2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(math.sqrt(t * rho2 + 1) / 0.05)
    )
    found = TEST.mean(x)
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (x.mean, x.mean - half, x.mean + half)
    )


def test_no_other_rho_is_tighter_at_the_target() -> None:
    def width(log_r: float) -> float:
        r = math.exp(log_r)
        return (1 + 1 / r) * math.log((1 + r) / 0.05**2)

    best = minimize_scalar(width, bounds=(-3, 6), method="bounded")
    assert TEST.rho2 * 400 == pytest.approx(math.exp(best.x), rel=1e-3)
    assert TEST.boundary(400.0) ** 2 == pytest.approx(best.fun)


def test_a_wrong_target_costs_what_the_docstring_says() -> None:
    right = float(TEST.boundary(400.0))
    too_large, too_small = (
        float(Sequential(target).boundary(400.0)) / right for target in (4000, 40)
    )
    assert (too_large, too_small) == pytest.approx((1.26, 1.07), abs=0.005)


def test_the_p_value_is_the_inverse_of_a_mixture_of_likelihood_ratios(
    rng: np.random.Generator,
) -> None:
    control, treatment = (
        Moments.of(rng.normal(0, 1, size=60)),
        Moments.of(rng.normal(0.9, 2, size=90)),
    )
    variance = control.variance / 60 + treatment.variance / 90
    apart = treatment.mean - control.mean
    tau2 = variance * TEST.rho2 * 2 / (1 / 60 + 1 / 90)
    mixed, _ = quad(
        lambda d: norm.pdf(apart, d, math.sqrt(variance)) * norm.pdf(d, 0, math.sqrt(tau2)), -5, 5
    )
    assert TEST.difference(control, treatment).p == pytest.approx(
        norm.pdf(apart, 0, math.sqrt(variance)) / mixed
    )


def test_p_is_at_most_alpha_exactly_where_the_interval_leaves_out_the_null(
    rng: np.random.Generator,
) -> None:
    verdicts = set()
    for gap in np.linspace(0, 1.5, 61):
        a, b = Moments.of(rng.normal(0, 1, size=40)), Moments.of(rng.normal(gap, 1, size=55))
        for found, null in ((TEST.difference(a, b), 0.0), (TEST.mean(b, null=0.3), 0.3)):
            assert (found.p <= 0.05) == (not found.low < null < found.high)
            verdicts.add(found.p <= 0.05)
    assert verdicts == {True, False}


def test_a_range_counts_as_four_more_misses() -> None:
    assert pad_range(Moments(100, 7.0, 3.0), 10.0) == Moments(100, 7.0, 403.0)
    assert TEST.mean(pad_range(Moments(100, 0.0, 0.0), 1.0)).high > 0.05


@pytest.mark.parametrize("n", [0, 1, 19])
def test_nothing_is_claimed_before_the_burn_in(n: int) -> None:
    few, many = Moments.of(np.arange(n)), Moments.of(np.arange(100))
    nothing = (-math.inf, math.inf, 1.0)
    for found in (TEST.mean(few), TEST.difference(few, many), TEST.difference(many, few)):
        assert (found.low, found.high, found.p) == nothing
    assert TEST.mean(Moments.of(np.arange(20))).high < math.inf


def test_arms_that_do_not_vary() -> None:
    one, two = Moments(50, 1.0, 0.0), Moments(50, 2.0, 0.0)
    assert TEST.difference(one, one) == Interval(0.0, 0.0, 0.0, 1.0)
    assert TEST.difference(one, two) == Interval(1.0, 1.0, 1.0, 0.0)
    assert TEST.difference(two, one).p == 0.0
