"""Treatments against the control, from tallies alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from router.experiments import planner
from router.experiments.checks import holm
from router.experiments.cuped import Adjusted, cuped
from router.experiments.definition import Definition, Metric
from router.experiments.moments import AnalysisError, Moments
from router.experiments.ratio import ratio
from router.experiments.sequential import Interval, Sequential, ranged
from tta_serve.experiments.logs import Tally
from tta_serve.experiments.results import Comparison, Estimate, Look, Reading

Found = TypeVar("Found")


def treatments(definition: Definition) -> list[str]:
    return [arm.name for arm in definition.arms if arm.name != definition.control]


def claims(definition: Definition) -> int:
    """How many comparisons are read together: treatments times the primary and secondary metrics."""
    return len(treatments(definition)) * (1 + len(definition.metrics.secondary))


def of_claim(definition: Definition) -> Sequential:
    """The test of one of the claims, so that the intervals of all hold together."""
    return Sequential(definition.target, definition.alpha / claims(definition))


def moments(tally: Tally, metric: Metric, definition: Definition, look: int = -1) -> Adjusted:
    """The moments of each arm, adjusted by the past where the tally has one."""
    cells = {arm.name: tally.at(arm.name, look) for arm in definition.arms}
    if metric.kind == "ratio":
        return Adjusted({name: ratio(cell.pairs) for name, cell in cells.items()}, 0.0, "the metric is a ratio")
    return cuped({name: cell.pairs for name, cell in cells.items()}, {name: cell.rest for name, cell in cells.items()})


def span(metric: Metric) -> float:
    """The range of a unit's value, 0 where it has none; adjusted, one that is yet to be met is still off by that."""
    return 1.0 if metric.kind == "share" else 0.0


def testable(metric: Metric, found: Adjusted) -> dict[str, Moments]:
    """The arms as `Sequential` takes them."""
    return {name: ranged(arm, span(metric)) for name, arm in found.arms.items()}


def compared(definition: Definition, found: Mapping[str, Adjusted]) -> dict[tuple[str, str], Comparison]:
    """All claims, by metric and treatment. found: by metric"""
    d, test, primary = definition, of_claim(definition), definition.metrics.primary
    metrics = {metric.name: metric for metric in (primary, *d.metrics.secondary)}
    arms = {name: testable(metric, found[name]) for name, metric in metrics.items()}
    gaps = {(m, arm): test.difference(arms[m][d.control], arms[m][arm]) for m in metrics for arm in treatments(d)}
    adjusted = holm({key: gap.p for key, gap in gaps.items()})
    results = {}
    for (name, arm), gap in gaps.items():
        control, treatment = arms[name][d.control], arms[name][arm]
        share, p = relative(test, control, treatment), adjusted[name, arm]
        sure: Reading = "better" if (gap.estimate > 0) == (metrics[name].better == "higher") else "worse"
        needed, detectable = outlook(d, found[name], arm) if name == primary.name else (None, None)
        results[name, arm] = Comparison(
            arm=arm,
            difference=Estimate.of(gap) if control.n and treatment.n else None,
            relative=Estimate.of(share) if share else None,
            p=gap.p,
            p_holm=p,
            reading=sure if p <= d.alpha else "undecided",
            needed=needed,
            detectable=detectable,
        )
    return results


def relative(test: Sequential, control: Moments, treatment: Moments) -> Interval | None:
    """The difference as a share of the control's mean, by the delta method: with r = m_t / m_c its variance is
    (var_t + r^2 var_c) / m_c^2. None where the control's mean may be 0 or less."""
    if test.mean(control).low <= 0:
        return None
    unit = 1 / control.mean
    r = treatment.mean * unit
    return test.difference(
        Moments(control.n, 1.0, control.m2 * (r * unit) ** 2), Moments(treatment.n, r, treatment.m2 * unit**2)
    )


def outlook(definition: Definition, found: Adjusted, arm: str) -> tuple[int | None, float | None]:
    """Units per arm that find a true primary difference of today's size with probability 0.8, and the least difference that as
    many as there are find so. None where there is no such number."""
    control, treatment, test = found.arms[definition.control], found.arms[arm], of_claim(definition)
    variance = control.variance + treatment.variance
    if min(control.n, treatment.n) < test.burn_in or not variance:
        return None, None
    design = planner.peeking(test)
    metric = planner.Mean(math.sqrt(variance / 2), span(definition.metrics.primary))
    n, difference = int(2 / (1 / control.n + 1 / treatment.n)), treatment.mean - control.mean
    return _or_none(lambda: planner.units(design, metric, difference)), _or_none(lambda: planner.detectable(design, metric, n))


def _or_none(found: Callable[[], Found]) -> Found | None:
    try:
        return found()
    except AnalysisError:
        return None


def looked(definition: Definition, primary: Tally, ends: Sequence[float]) -> Iterator[Look]:
    """The primary difference of each treatment at each look."""
    for look, end in enumerate(ends):
        metric = definition.metrics.primary
        arms = testable(metric, moments(primary, metric, definition, look))
        control = arms[definition.control]
        for arm in treatments(definition):
            if control.n and arms[arm].n:
                yield Look(end, arm, Estimate.of(of_claim(definition).difference(control, arms[arm])))
