"""Thompson sampling's weights against closed forms and draws."""

import math

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import norm

from tta_serve.experiments.design.bandit import thompson
from tta_serve.experiments.statistics.moments import AnalysisError, Moments


def successes(n: int, k: int) -> Moments:
    return Moments.of([1.0] * k + [0.0] * (n - k))


def test_two_success_rates_are_compared_as_by_the_exact_sum() -> None:
    # P(Beta(c, d) > Beta(a, b)) for whole numbers (Miller 2015).
    a, b, c, d = 31, 71, 42, 70
    exact = sum(
        math.exp(betaln(a + i, b + d) - math.log(d + i) - betaln(1 + i, d) - betaln(a, b))
        for i in range(c)
    )
    found = thompson({"x": successes(100, 30), "y": successes(110, 41)}, share=True, explore=0.0)
    assert found["y"] == pytest.approx(exact, abs=1e-6)


def test_two_means_are_compared_as_by_the_normal_distribution(rng: np.random.Generator) -> None:
    x, y = Moments.of(rng.normal(5, 1, size=40)), Moments.of(rng.normal(5.2, 2, size=60))
    within = (x.m2 + y.m2) / 98
    spread = math.sqrt((x.m2 + within) / 40**2 + (y.m2 + within) / 60**2)
    exact = norm.cdf((y.mean - x.mean) / spread)
    assert thompson({"x": x, "y": y}, share=False, explore=0.0)["y"] == pytest.approx(
        exact, abs=1e-6
    )
    low = thompson({"x": x, "y": y}, share=False, explore=0.0, lower_is_better=True)
    assert low["x"] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("lower", [False, True])
def test_weights_are_the_shares_of_draws_in_which_an_arm_is_best(
    rng: np.random.Generator, lower: bool
) -> None:
    arms = {
        name: Moments.of(rng.beta(a, 2, size=25))
        for name, a in (("a", 2.0), ("b", 2.2), ("c", 2.4), ("d", 1.5))
    }
    draws = np.stack(
        [rng.beta(1 + 25 * m.mean, 1 + 25 * (1 - m.mean), size=400_000) for m in arms.values()]
    )
    best = np.bincount((draws.argmin(0) if lower else draws.argmax(0)), minlength=4) / 400_000
    found = thompson(arms, share=True, explore=0.05, lower_is_better=lower)
    assert list(found.values()) == pytest.approx(list(0.05 + 0.8 * best), abs=0.003)
    assert sum(found.values()) == pytest.approx(1)


def test_no_arm_falls_below_the_floor() -> None:
    arms = {"bad": successes(5000, 10), "good": successes(5000, 4000), "worse": successes(5000, 5)}
    assert thompson(arms, share=True, explore=0.02) == pytest.approx(
        {"bad": 0.02, "good": 0.96, "worse": 0.02}
    )
    assert thompson(arms, share=True, explore=1 / 3) == pytest.approx(dict.fromkeys(arms, 1 / 3))


def test_arms_that_are_new_or_do_not_vary() -> None:
    met = Moments.of([1.0, 1.0])
    assert thompson({"a": met, "b": Moments.of([3.0])}, share=False, explore=0.0) == {
        "a": 0.5,
        "b": 0.5,
    }
    assert thompson({"a": met, "b": met}, share=False, explore=0.0) == pytest.approx(
        {"a": 0.5, "b": 0.5}
    )
    assert thompson(
        {"a": met, "b": Moments.of([2.0, 2.0])}, share=False, explore=0.1
    ) == pytest.approx({"a": 0.1, "b": 0.9})
    lucky = thompson({"a": met, "b": Moments.of([0.0, 1.5, 0.7, 1.2])}, share=False, explore=0.0)
    assert 0 < lucky["b"] < 0.5


def test_batches_find_the_best_arm_and_pay_less_than_an_even_split(
    rng: np.random.Generator,
) -> None:
    rates = {"a": 0.4, "b": 0.5, "c": 0.7}
    arms, paid = dict.fromkeys(rates, Moments()), 0.0
    for _ in range(20):
        weights = thompson(arms, share=True, explore=0.02)
        for arm, n in zip(rates, rng.multinomial(100, list(weights.values())), strict=True):
            k = int(rng.binomial(n, rates[arm]))
            arms[arm] += successes(int(n), k)
            paid += k
    assert arms["c"].n > 1500
    assert paid / 2000 > 0.65


def test_what_cannot_be_sampled() -> None:
    arms = {"a": Moments.of([1.0, 2.0]), "b": Moments.of([0.5, 0.5])}
    with pytest.raises(AnalysisError, match="the mean of a is not"):
        thompson(arms, share=True, explore=0.0)
    for explore in (0.6, -0.1):
        with pytest.raises(AnalysisError, match=r"from 0 to 0\.5 with 2 arms"):
            thompson(arms, share=False, explore=explore)
