"""Treatments against the control, from tallies alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from tta_serve.experiments.analysis.results import Comparison, Estimate, Look, Reading
from tta_serve.experiments.analysis.tallies import MetricTally
from tta_serve.experiments.design import planner
from tta_serve.experiments.design.definition import Definition, Metric
from tta_serve.experiments.statistics.cuped import Adjusted, cuped
from tta_serve.experiments.statistics.moments import AnalysisError, Moments
from tta_serve.experiments.statistics.multiplicity_and_srm import holm
from tta_serve.experiments.statistics.ratio import ratio
from tta_serve.experiments.statistics.sequential import Interval, Sequential, pad_range

Found = TypeVar("Found")


def treatments(definition: Definition) -> list[str]:
    """Return the names of all arms but the control."""
    return [arm.name for arm in definition.arms if arm.name != definition.control]


def count_claims(definition: Definition) -> int:
    """Return how many comparisons are read together.

    That is treatments times the primary and secondary metrics.
    """
    return len(treatments(definition)) * (1 + len(definition.metrics.secondary))


def claim_test(definition: Definition) -> Sequential:
    """Return the test of one of the claims, so that the intervals of all hold together."""
    return Sequential(definition.target, definition.alpha / count_claims(definition))


def adjusted_moments(
    tally: MetricTally, metric: Metric, definition: Definition, look: int = -1
) -> Adjusted:
    """Return the moments of each arm, adjusted by the past where the tally has one."""
    sums = {arm.name: tally.at(arm.name, look) for arm in definition.arms}
    if metric.kind == "ratio":
        arms = {name: ratio(arm.pairs) for name, arm in sums.items()}
        return Adjusted(arms, 0.0, "the metric is a ratio")
    return cuped(
        {name: arm.pairs for name, arm in sums.items()},
        {name: arm.rest for name, arm in sums.items()},
    )


def value_range(metric: Metric) -> float:
    """Return the range of a unit's value, 0 where it has none.

    It is the same of adjusted values: one that is yet to be met is still off by that.
    """
    return 1.0 if metric.kind == "share" else 0.0


def testable_moments(metric: Metric, found: Adjusted) -> dict[str, Moments]:
    """Return the arms' moments as a `Sequential` test takes them."""
    return {name: pad_range(arm, value_range(metric)) for name, arm in found.arms.items()}


def compare_arms(
    definition: Definition, found: Mapping[str, Adjusted]
) -> dict[tuple[str, str], Comparison]:
    """Return the comparisons of all claims, by metric and treatment.

    Args:
        found: The arms' moments, by metric.
    """
    test = claim_test(definition)
    metrics = {
        metric.name: metric
        for metric in (definition.metrics.primary, *definition.metrics.secondary)
    }
    arms = {name: testable_moments(metric, found[name]) for name, metric in metrics.items()}
    differences = {
        (name, arm): test.difference(arms[name][definition.control], arms[name][arm])
        for name in metrics
        for arm in treatments(definition)
    }
    p_holm = holm({claim: difference.p for claim, difference in differences.items()})

    comparisons = {}
    for (name, arm), difference in differences.items():
        control = arms[name][definition.control]
        treatment = arms[name][arm]
        relative = relative_difference(test, control, treatment)
        needed, detectable = None, None
        if name == definition.metrics.primary.name:
            needed, detectable = power_outlook(definition, found[name], arm)
        comparisons[name, arm] = Comparison(
            arm=arm,
            difference=Estimate.of(difference) if control.n and treatment.n else None,
            relative=Estimate.of(relative) if relative else None,
            p=difference.p,
            p_holm=p_holm[name, arm],
            reading=_read(metrics[name], difference, p_holm[name, arm], definition.alpha),
            needed=needed,
            detectable=detectable,
        )
    return comparisons


def _read(metric: Metric, difference: Interval, p: float, alpha: float) -> Reading:
    if p <= alpha:
        higher = difference.estimate > 0
        return "better" if higher == (metric.better == "higher") else "worse"
    return "undecided"


def relative_difference(test: Sequential, control: Moments, treatment: Moments) -> Interval | None:
    """Return the difference as a share of the control's mean, by the delta method.

    With r = m_t / m_c its variance is (var_t + r^2 var_c) / m_c^2. It is None where the control's
    mean may be 0 or less.
    """
    if test.mean(control).low <= 0:
        return None
    unit = 1 / control.mean
    r = treatment.mean * unit
    return test.difference(
        Moments(control.n, 1.0, control.m2 * (r * unit) ** 2),
        Moments(treatment.n, r, treatment.m2 * unit**2),
    )


def power_outlook(
    definition: Definition, found: Adjusted, arm: str
) -> tuple[int | None, float | None]:
    """Return how many units the primary difference takes, and which one can be found.

    The first is the units per arm that find a true difference of today's size with probability
    0.8; the second the least difference that as many units as there are find so. Each is None where
    there is no such number.
    """
    test = claim_test(definition)
    control = found.arms[definition.control]
    treatment = found.arms[arm]
    variance = control.variance + treatment.variance
    if min(control.n, treatment.n) < test.burn_in or not variance:
        return None, None

    design = planner.peeking_design(test)
    metric = planner.Mean(math.sqrt(variance / 2), value_range(definition.metrics.primary))
    n = int(2 / (1 / control.n + 1 / treatment.n))
    difference = treatment.mean - control.mean
    needed = _get_or_none(lambda: planner.units_needed(design, metric, difference))
    detectable = _get_or_none(lambda: planner.detectable_difference(design, metric, n))
    return needed, detectable


def _get_or_none(find: Callable[[], Found]) -> Found | None:
    try:
        return find()
    except AnalysisError:
        return None


def difference_over_time(
    definition: Definition, primary: MetricTally, ends: Sequence[float]
) -> Iterator[Look]:
    """Yield the primary difference of each treatment as it was known at each look.

    Args:
        primary: The tally of the primary metric.
        ends: The times of its looks, UTC seconds since 1970.
    """
    test = claim_test(definition)
    metric = definition.metrics.primary
    for look, end in enumerate(ends):
        arms = testable_moments(metric, adjusted_moments(primary, metric, definition, look))
        control = arms[definition.control]
        for arm in treatments(definition):
            if control.n and arms[arm].n:
                yield Look(end, arm, Estimate.of(test.difference(control, arms[arm])))
