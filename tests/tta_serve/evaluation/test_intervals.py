"""`tta eval`: intervals hold what they say."""

import math

import numpy as np
import pytest

from tta_serve.evaluation.intervals import (
    NO_ESTIMATE,
    estimate_difference,
    estimate_mean,
    estimate_ratio,
)


def test_intervals_of_95_percent_hold_the_mean_about_that_often() -> None:
    """500 draws of 50 right-or-wrong answers: the true share lies within; the percentile interval
    is a little short.
    """
    rng, share = np.random.default_rng(0), 0.7
    found = [estimate_mean((rng.random(50) < share).tolist(), seed) for seed in range(500)]
    inside = sum(low <= share <= high for _, low, high in found) / len(found)
    assert 0.91 <= inside <= 0.98
    wide = np.mean([high - low for _, low, high in found])
    assert wide == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 50), rel=0.05)


def test_pairs_are_resampled_together() -> None:
    values = np.random.default_rng(1).random(40).tolist()
    assert estimate_ratio(values, values, 0) == (1, 1, 1)
    assert estimate_ratio([v / 2 for v in values], values, 0) == pytest.approx((0.5, 0.5, 0.5))
    assert estimate_difference([([v + 0.25 for v in values], values)], 0) == pytest.approx(
        (0.25, 0.25, 0.25)
    )
    apart = estimate_difference([(values, values[::-1])], 0)
    assert apart.value == pytest.approx(0)
    assert apart.low < -0.01 < 0.01 < apart.high


@pytest.mark.filterwarnings("error")
def test_resamples_without_a_ratio_are_left_out() -> None:
    value, low, high = estimate_ratio([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], 0)
    assert (value, low, high) == (0.5, 0.0, 1.0)


def test_every_slice_counts_alike() -> None:
    large, small = ([1.0] * 90, [0.0] * 90), ([0.0] * 10, [0.0] * 10)
    assert estimate_difference([large, small], 0) == (0.5, 0.5, 0.5)


def test_the_seed_decides_and_nothing_is_made_of_nothing() -> None:
    values = np.random.default_rng(2).random(20).tolist()
    assert estimate_mean(values, 3) == estimate_mean(values, 3) != estimate_mean(values, 4)
    assert estimate_mean(values, 3).value == pytest.approx(np.mean(values))
    assert all(map(math.isnan, estimate_mean([], 0)))
    assert estimate_ratio([1.0], [0.0], 0) is NO_ESTIMATE
    one = estimate_mean([0.5], 0)
    assert one.value == 0.5
    assert math.isnan(one.low)
