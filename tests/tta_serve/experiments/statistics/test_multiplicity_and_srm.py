"""Sample ratio mismatch and corrections for many comparisons."""

import numpy as np
import pytest
from scipy.stats import chi2

from tta_serve.experiments.statistics.moments import AnalysisError
from tta_serve.experiments.statistics.multiplicity_and_srm import SRM_ALERT, holm, srm


def test_srm_is_pearsons_chi_square() -> None:
    counts, weights = {"a": 1043, "b": 955, "c": 502}, {"c": 1.0, "a": 2.0, "b": 2.0}
    statistic = 43**2 / 1000 + 45**2 / 1000 + 2**2 / 500
    assert srm(counts, weights) == pytest.approx(chi2.sf(statistic, 2))


def test_srm_alarms_as_often_as_it_says_and_finds_a_split_that_is_off(
    rng: np.random.Generator,
) -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}

    def alarms(shares: list[float], level: float) -> float:
        draws = rng.multinomial(10_000, shares, size=2000)
        return float(
            np.mean(
                [
                    srm(dict(zip(weights, map(int, row), strict=True)), weights) < level
                    for row in draws
                ]
            )
        )

    assert alarms([0.5, 0.3, 0.2], 0.05) == pytest.approx(0.05, abs=0.015)
    assert alarms([0.5, 0.3, 0.2], SRM_ALERT) <= 0.004
    assert alarms([0.53, 0.28, 0.19], SRM_ALERT) > 0.95


def test_srm_at_the_edges() -> None:
    assert srm({"a": 0, "b": 0}, {"a": 1, "b": 1}) == 1
    assert srm({"a": 9, "b": 0}, {"a": 1, "b": 0}) == 1
    assert srm({"a": 9, "b": 1}, {"a": 1, "b": 0}) == 0
    for weights in ({"a": 1.0}, {"a": 1.0, "b": -1.0}, {"a": 0.0, "b": 0.0}):
        with pytest.raises(AnalysisError, match="for the arms a, b"):
            srm({"a": 1, "b": 1}, weights)


def test_holm_gives_the_values_of_r() -> None:
    claims = {"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.011}
    assert list(holm(claims).items()) == [
        ("d", 0.06),
        ("a", 0.04),
        ("c", 0.06),
        ("b", pytest.approx(0.04)),
    ]
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_lets_a_false_claim_pass_at_most_at_alpha(rng: np.random.Generator) -> None:
    p = rng.random((4000, 6))
    p[:, :3] *= 1e-6  # three claims are true
    passed = [min(list(holm(dict(enumerate(row))).values())[3:]) <= 0.05 for row in p]
    assert np.mean(passed) == pytest.approx(0.05, abs=0.012)
