"""Replays of logs whose true value is known."""

import math

import numpy as np
import pytest

from tta_serve.experiments.statistics.moments import AnalysisError, Array
from tta_serve.experiments.statistics.offpolicy import Replay

LOGGING = np.array([0.6, 0.3, 0.1])
TARGET = np.array([0.1, 0.3, 0.6])
RATES = np.array([0.2, 0.5, 0.8])
VALUE = float(TARGET @ RATES)


def log(
    rng: np.random.Generator, n: int, logging: Array = LOGGING, target: Array = TARGET
) -> tuple[Array, Array, Array]:
    """Propensities, the target's probabilities and rewards of n units."""
    arms = rng.choice(3, size=n, p=logging)
    return logging[arms], target[arms], (rng.random(n) < RATES[arms]).astype(float)


def test_estimates_are_the_sums_of_the_docstring_and_merge(rng: np.random.Generator) -> None:
    p, pi, r = log(rng, 500)
    p, w = p.astype(float), pi / p
    found = Replay.of(p[:200], pi[:200], r[:200], clip=3.0) + Replay.of(
        p[200:], pi[200:], r[200:], clip=3.0
    )
    assert found.n == 500
    assert found.ips().estimate == pytest.approx((w * r).mean())
    assert found.ips().high - found.ips().low == pytest.approx(
        2 * 1.959964 * (w * r).std(ddof=1) / math.sqrt(500)
    )
    assert found.snips().estimate == pytest.approx((w * r).sum() / w.sum())
    spread = math.sqrt((w**2 * (r - found.snips().estimate) ** 2).sum() * 500 / 499) / w.sum()
    assert found.snips().high - found.snips().low == pytest.approx(2 * 1.959964 * spread)
    assert found.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.bernstein().estimate == pytest.approx((np.minimum(w, 3) * r).mean())


def test_the_target_that_was_logged_has_the_mean_reward_and_loses_no_unit(
    rng: np.random.Generator,
) -> None:
    p, _, r = log(rng, 300)
    found = Replay.of(p, p, r)
    assert found.ips() == found.snips()
    assert found.ips().estimate == pytest.approx(r.mean())
    assert found.effective == pytest.approx(300)


def test_ips_has_no_bias_and_intervals_cover(rng: np.random.Generator) -> None:
    replays = [Replay.of(*log(rng, 1000)) for _ in range(2000)]
    ips = np.array([replay.ips().estimate for replay in replays])
    assert abs(ips.mean() - VALUE) < 3 * ips.std() / math.sqrt(2000)
    for intervals in ([replay.ips() for replay in replays], [replay.snips() for replay in replays]):
        assert np.mean([found.low <= VALUE <= found.high for found in intervals]) == pytest.approx(
            0.95, abs=0.015
        )
    assert (
        np.mean(
            [
                found.low <= VALUE <= found.high
                for found in (replay.bernstein() for replay in replays)
            ]
        )
        > 0.95
    )
    assert np.mean([replay.covered().high < 1 for replay in replays]) == pytest.approx(
        0.025, abs=0.0125
    )
    assert np.std([replay.snips().estimate for replay in replays]) < ips.std()


def test_clipping_costs_width_and_no_coverage(rng: np.random.Generator) -> None:
    replays = [Replay.of(*log(rng, 1000), clip=2.0) for _ in range(300)]
    assert all(
        found.low <= VALUE <= found.high for found in (replay.bernstein() for replay in replays)
    )
    assert np.mean([replay.bernstein().estimate for replay in replays]) < VALUE - 0.2


def test_what_the_log_does_not_cover_is_told(rng: np.random.Generator) -> None:
    found = Replay.of(*log(rng, 4000, np.array([0.7, 0.3, 0.0])))
    assert found.covered().estimate == pytest.approx(0.4, abs=0.03)
    assert found.covered().high < 0.5
    assert found.snips(0.001).low < (0.1 * 0.2 + 0.3 * 0.5) / 0.4 < found.snips(0.001).high
    assert found.bernstein().low < VALUE < found.bernstein().high
    assert found.bernstein().high - found.bernstein().low > 0.6


def test_nothing_in_common() -> None:
    found = Replay.of([0.5, 0.5], [0.0, 0.0], [1.0, 0.0])
    assert found.effective == found.covered().estimate == found.ips().estimate == 0
    with pytest.raises(AnalysisError, match="sum to 0"):
        found.snips()
    assert Replay(20.0).bernstein().low == 0
    assert Replay(20.0).bernstein().high == 1


@pytest.mark.parametrize(
    ("propensities", "targets", "rewards", "says"),
    [
        ([0.0, 0.5], [0.5, 0.5], [1, 1], "1 of 2 logged propensities are missing"),
        ([float("nan"), -0.5], [0.5, 0.5], [1, 1], "2 of 2 logged propensities are missing"),
        ([1.5, 1.0], [0.5, 0.5], [1, 1], "1 of 2 logged propensities"),
        ([0.5, 0.5], [0.5, float("nan")], [1, 1], "1 of 2 of the target policy's probabilities"),
        ([0.5, 0.5], [0.5, 0.5], [1, float("nan")], "1 of 2 values are NaN"),
    ],
)
def test_logs_without_what_a_replay_needs_are_refused(
    propensities: list[float], targets: list[float], rewards: list[float], says: str
) -> None:
    with pytest.raises(AnalysisError, match=says):
        Replay.of(propensities, targets, rewards)


def test_rewards_beyond_the_unit_interval_have_no_bernstein_bounds() -> None:
    found = Replay.of([0.5], [0.5], [0.3]) + Replay.of([0.5], [0.5], [3.0])
    assert found.ips().estimate == pytest.approx(1.65)
    with pytest.raises(AnalysisError, match="must be in \\[0, 1\\]"):
        found.bernstein()
