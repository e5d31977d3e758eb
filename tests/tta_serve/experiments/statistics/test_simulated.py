"""How often the sequential test errs, and how often it finds what is there.

Every unit from the burn-in to the last is looked at.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import pytest

from tta_serve.experiments.design.planner import (
    Mean,
    PlannedMetric,
    Rate,
    peeking_design,
    tuned_design,
    units_needed,
)
from tta_serve.experiments.statistics.cuped import cuped
from tta_serve.experiments.statistics.moments import Array, Bivariate, Moments
from tta_serve.experiments.statistics.ratio import ratio
from tta_serve.experiments.statistics.sequential import PRIOR_MISSES, Sequential, pad_range

AT_ONCE, LAST = 50, 5000
TEST = Sequential(target=2000)
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]


@pytest.fixture(params=[400, pytest.param(2000, marks=pytest.mark.long)])
def experiments(request: pytest.FixtureRequest) -> int:
    """How many experiments are simulated."""
    return int(request.param)


def find_noise(share: float, experiments: int) -> float:
    """Return how far a share of so many experiments may be from what is expected of them."""
    return float(3 * (share * (1 - share) / experiments) ** 0.5)


def bernoulli(rate: float) -> Draw:
    return lambda rng, shape: (rng.random(shape) < rate).astype(float)


def normal(mean: float) -> Draw:
    return lambda rng, shape: rng.normal(mean, size=shape)


def exponential(mean: float) -> Draw:
    return lambda rng, shape: rng.exponential(mean, size=shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.lognormal(size=shape)


class ArmOverTime(NamedTuple):
    """An arm at each look from the burn-in on."""

    n: Array
    """The units at each look: [looks]."""
    mean: Array
    """Their mean: [experiments, looks]."""
    variance: Array
    """The variance of the mean: [experiments, looks]."""

    @classmethod
    def of(cls, values: Array, span: float, every: int) -> Self:
        """Return an arm of some experiments.

        Args:
            values: [experiments, units].
            span: The range of a value, 0 where it has none.
            every: How many units come between two looks.
        """
        n = np.arange(every * TEST.burn_in, values.shape[1] + 1, every)
        mean = values.cumsum(1)[:, n - 1] / n
        m2 = (values**2).cumsum(1)[:, n - 1] - n * mean**2
        return cls(n, mean, (m2 + PRIOR_MISSES * span**2) / (n - 1) / n)


def simulated(
    experiments: int,
    *draws: Draw,
    span: float,
    last: int = LAST,
    every: tuple[int, ...] = (1, 1),
) -> Iterator[list[ArmOverTime]]:
    """Yield the arms of experiments, some experiments at once."""
    rng = np.random.default_rng(8)
    for _ in range(experiments // AT_ONCE):
        yield [
            ArmOverTime.of(draw(rng, (AT_ONCE, last * k)), span, k)
            for draw, k in zip(draws, every, strict=False)
        ]


def distance(arms: list[ArmOverTime], truth: float, test: Sequential) -> Array:
    """Return how far estimates are from the truth, in half widths of the confidence sequence.

    The result is [experiments, looks].
    """
    *control, treatment = arms
    estimate = treatment.mean - (control[0].mean if control else 0.0)
    error = np.sqrt(np.sum([arm.variance for arm in arms], axis=0))
    units: Array = len(arms) / np.sum([1 / arm.n for arm in arms], axis=0)
    far: Array = (estimate - truth) / error / test.boundary(units)
    return far


def outside(
    batches: Iterator[list[ArmOverTime]], truth: float = 0.0, test: Sequential = TEST
) -> float:
    """Return the share of experiments whose sequence leaves out the truth at some look."""
    far = [np.abs(distance(arms, truth, test)).max(1) > 1 for arms in batches]
    return float(np.concatenate(far).mean())


def test_what_is_simulated_is_what_the_test_does() -> None:
    values = [
        np.random.default_rng(9).binomial(1, rate, size=(1, n)).astype(float)
        for rate, n in ((0.05, 900), (0.2, 300))
    ]
    arms = [ArmOverTime.of(arm, 1.0, k) for arm, k in zip(values, (3, 1), strict=True)]
    for look in (100, 120, 300):
        seen = [
            pad_range(Moments.of(rows[0, :n]), 1.0)
            for rows, n in zip(values, (3 * look, look), strict=True)
        ]
        for found, simulation in ((TEST.difference(*seen), arms), (TEST.mean(seen[1]), arms[1:])):
            expected = found.estimate / (found.high - found.estimate)
            assert distance(simulation, 0.0, TEST)[0, look - TEST.burn_in] == pytest.approx(
                expected
            )


@pytest.mark.parametrize(
    ("draw", "span", "every"),
    [
        (normal(0), 0, (1, 1)),
        (bernoulli(0.5), 1, (1, 1)),
        (bernoulli(0.05), 1, (1, 1)),
        (bernoulli(0.01), 1, (1, 1)),
        (exponential(1), 0, (1, 1)),
        (lognormal, 0, (1, 1)),
        (bernoulli(0.05), 1, (4, 1)),
        (exponential(1), 0, (4, 1)),
    ],
)
def test_of_equal_arms_at_most_alpha_are_ever_found_to_differ(
    draw: Draw, span: float, every: tuple[int, int], experiments: int
) -> None:
    assert outside(simulated(experiments, draw, draw, span=span, every=every)) <= TEST.alpha


def test_without_its_range_a_rate_in_a_small_arm_breaks_the_promise(experiments: int) -> None:
    assert (
        outside(
            simulated(
                experiments, bernoulli(0.01), bernoulli(0.01), span=0, every=(9, 1), last=1000
            )
        )
        > 0.2
    )


@pytest.mark.parametrize(
    ("draws", "span", "truth"),
    [
        ((bernoulli(0.05), bernoulli(0.08)), 1, 0.03),
        ((bernoulli(0.5), bernoulli(0.9)), 1, 0.4),
        ((exponential(1), exponential(2)), 0, 1.0),
        ((normal(3),), 0, 3.0),
        ((bernoulli(0.5),), 1, 0.5),
        ((bernoulli(0.05),), 1, 0.05),
        ((exponential(1),), 0, 1.0),
    ],
)
def test_the_sequence_covers_the_truth_at_all_looks(
    draws: tuple[Draw, ...], span: float, truth: float, experiments: int
) -> None:
    assert outside(simulated(experiments, *draws, span=span), truth) <= TEST.alpha


@pytest.mark.parametrize(
    ("metric", "difference", "draws", "span"),
    [
        (Mean(1.0), 0.2, (normal(0), normal(0.2)), 0),
        (Rate(0.5), 0.1, (bernoulli(0.5), bernoulli(0.6)), 1),
        (Rate(0.05), 0.03, (bernoulli(0.05), bernoulli(0.08)), 1),
    ],
)
def test_a_plan_keeps_its_promise(
    metric: PlannedMetric,
    difference: float,
    draws: tuple[Draw, Draw],
    span: float,
    experiments: int,
) -> None:
    n = units_needed(tuned_design(TEST), metric, difference, power=0.8)
    assert outside(
        simulated(experiments, *draws, span=span, last=n), test=replace(TEST, target=n)
    ) == pytest.approx(0.8, abs=find_noise(0.8, experiments))


def test_a_plan_knows_how_often_nothing_is_taken_for_something(experiments: int) -> None:
    expected = peeking_design(TEST)(Mean(1.0), 0.0, LAST)
    found = outside(simulated(experiments, normal(0), normal(0), span=0))
    assert found == pytest.approx(expected, abs=find_noise(expected, experiments))


def test_ratios_and_adjusted_means_err_no_more_than_means(experiments: int) -> None:
    rng = np.random.default_rng(10)
    wrong = {"ratio": 0, "cuped": 0}
    for _ in range(experiments // 2):
        pairs = {arm: Bivariate() for arm in "ab"}
        past = {arm: Bivariate() for arm in "ab"}
        found = dict.fromkeys(wrong, False)
        for _ in range(15):
            for arm in "ab":
                requests = rng.poisson(3, size=60) + 1.0
                pairs[arm] += Bivariate.of(
                    requests, rng.binomial(requests.astype(int), rng.beta(1, 9, size=60))
                )
                x = rng.exponential(size=60)
                past[arm] += Bivariate.of(x, x + rng.normal(0, 0.5, size=60))
            adjusted = cuped(past, {}).arms
            found["ratio"] |= TEST.difference(ratio(pairs["a"]), ratio(pairs["b"])).p <= TEST.alpha
            found["cuped"] |= TEST.difference(adjusted["a"], adjusted["b"]).p <= TEST.alpha
        for name, claimed in found.items():
            wrong[name] += claimed
    assert max(wrong.values()) / (experiments // 2) <= TEST.alpha
