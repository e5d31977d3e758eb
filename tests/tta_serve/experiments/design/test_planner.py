"""Plans for one look against the textbook.

Whether peeking plans keep what they promise is tested in test_simulated.py.
"""

import math

import pytest
from scipy.stats import norm

from tta_serve.experiments.design.planner import (
    Design,
    Mean,
    PlannedMetric,
    Rate,
    detectable_difference,
    fixed_design,
    peeking_design,
    tuned_design,
    units_needed,
)
from tta_serve.experiments.statistics.moments import AnalysisError
from tta_serve.experiments.statistics.sequential import Sequential

TEST = Sequential(target=1000)


@pytest.mark.parametrize(
    ("metric", "difference", "variance"),
    [
        (Rate(0.5), 0.1, 0.25 + 0.24),
        (Rate(0.05), -0.02, 0.0475 + 0.0291),
        (Mean(3.0), 0.25, 18.0),
        (Mean(3.0), -0.25, 18.0),
    ],
)
def test_units_for_one_look_are_the_textbooks(
    metric: PlannedMetric, difference: float, variance: float
) -> None:
    expected = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * variance / difference**2
    assert units_needed(fixed_design(0.05), metric, difference) == math.ceil(expected)


@pytest.mark.parametrize("design", [fixed_design(0.05), peeking_design(TEST), tuned_design(TEST)])
@pytest.mark.parametrize(
    ("metric", "difference"), [(Rate(0.3), 0.1), (Rate(0.97), 0.02), (Mean(2.0), 0.4)]
)
def test_what_the_units_of_a_plan_detect_is_the_plans_difference(
    design: Design, metric: PlannedMetric, difference: float
) -> None:
    n = units_needed(design, metric, difference, power=0.9)
    assert detectable_difference(design, metric, n, power=0.9) <= difference
    assert detectable_difference(design, metric, n - 1, power=0.9) > difference


def test_peeking_costs_units_and_a_wrong_target_costs_more() -> None:
    once, best, early = (
        units_needed(design, Mean(1.0), 0.2)
        for design in (fixed_design(0.05), tuned_design(TEST), peeking_design(Sequential(50)))
    )
    assert once == 393
    assert once * 1.2 < best < early < once * 2
    assert (
        tuned_design(TEST)(Mean(1.0), 0.2, best)
        >= 0.8
        > tuned_design(TEST)(Mean(1.0), 0.2, best - 1)
    )


def test_the_error_rate_of_peeking_is_below_alpha_and_above_that_of_its_last_look() -> None:
    for n in (101, 1000, 100_000):
        last = 2 * norm.sf(TEST.boundary(float(n)))
        assert last < peeking_design(TEST)(Mean(1.0), 0.0, n) < 0.05
    only = TEST.boundary(100.0)
    assert peeking_design(TEST)(Mean(1.0), 0.0, 100) == pytest.approx(2 * norm.sf(only), rel=0.01)
    assert peeking_design(TEST)(Mean(1.0), 0.3, 100) == pytest.approx(
        norm.sf(only - 0.3 * math.sqrt(50)), rel=0.001
    )
    assert peeking_design(TEST)(Mean(1.0), 9.0, 99) == 0


def test_far_before_its_target_a_test_finds_only_what_is_large() -> None:
    far = Sequential(target=10**6)
    assert detectable_difference(peeking_design(far), Mean(1.0), 100) == pytest.approx(
        math.sqrt(2 / 100) * (float(far.boundary(100.0)) + norm.ppf(0.8)), rel=1e-3
    )


def test_what_cannot_be_planned() -> None:
    with pytest.raises(AnalysisError, match=r"can change by -0\.9 to 0\.1"):
        units_needed(fixed_design(0.05), Rate(0.9), 0.2)
    with pytest.raises(AnalysisError, match="takes over"):
        units_needed(fixed_design(0.05), Mean(1.0), 0.0)
    for design, metric in ((peeking_design(TEST), Mean(1.0)), (fixed_design(0.05), Rate(0.9))):
        with pytest.raises(AnalysisError, match="with 20 units per arm no increase"):
            detectable_difference(design, metric, 20)
    for wrong in (0.0, 1.0, 30.0, math.nan):
        with pytest.raises(AnalysisError, match="above 0 and below 1"):
            Rate(wrong)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(AnalysisError, match="must be above 0"):
            Mean(wrong)
