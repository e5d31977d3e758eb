"""What an experiment's logs say: every arm, every treatment against the control, guardrails, the split, a verdict.

Intervals of arms and of differences are confidence sequences, and p-values always valid (`router.experiments.sequential`):
they hold at every look. Arms' means are given at level 1 - alpha, each for itself. Treatments times the primary and secondary
metrics are claims read together: p-values are Holm's, intervals those of alpha / claims. Guardrails are each for itself, as
to keep a bad arm is worse than to stop a good one.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from router.experiments.cuped import Adjusted
from router.experiments.definition import Definition, Metric
from router.experiments.sequential import Sequential
from tta_serve.experiments.comparing import claims, compared, looked, moments, of_claim, testable
from tta_serve.experiments.guardrails import guarded
from tta_serve.experiments.logs import Acted, Tally, acted, tally
from tta_serve.experiments.replay import replay
from tta_serve.experiments.results import ArmMean, ArmSeen, Comparison, Estimate, MetricFound, Replayed, Report, Role
from tta_serve.experiments.split import split
from tta_serve.experiments.targets import to_arm
from tta_serve.experiments.verdict import Evidence, health, verdict
from tta_serve.experiments.words import number
from tta_serve.store.database import Database
from tta_serve.store.measures import Span

LOOKS = 30


def analyse(  # noqa: PLR0913 - what was stopped and weighed is not in the logs
    db: Database,
    definition: Definition,
    span: Span,
    now: float,
    *,
    stopped: Collection[str] = (),
    weights: Mapping[str, float] | None = None,
    looks: int = LOOKS,
) -> Report:
    """One pass over the logs for each metric, and with a bandit for each arm.

    span: versions with this definition   now: UTC seconds since 1970   stopped: arms that ever were
    weights: a bandit's, as they are now   looks: at how many times, between the first and the last exposure, the primary
    difference is to be known
    """
    d, seen, primary = definition, acted(db, span), definition.metrics.primary
    first, last = min((a.first for a in seen.values()), default=None), max((a.last for a in seen.values()), default=None)
    ends = _ends(first, last, looks)
    before = (first - d.pre_s, first) if d.pre_s and first is not None else None
    roles = _roles(d)
    moving = d.bandit is not None
    tallies = {m.name: tally(db, span, m, moving=moving) for m, role in roles if role != "primary"}
    tallies[primary.name] = tally(db, span, primary, ends, before, moving)
    found = {m.name: moments(tallies[m.name], m, d) for m, _ in roles}
    comparisons = {} if d.bandit else compared(d, found)
    guards = tuple(g for rail in d.metrics.guardrails for g in guarded(tallies[rail.name], rail, d))
    parting = split(d, {arm: a.units for arm, a in seen.items()}, stopped)
    own = {arm: comparison for (name, arm), comparison in comparisons.items() if name == primary.name}
    values = _values(db, d, span) if d.bandit and any(m.n for m in found[primary.name].arms.values()) else {}
    evidence = Evidence(d, testable(primary, found[primary.name]), own, guards, parting, stopped, of_claim(d))
    report = Report(
        experiment=d.name,
        versions=(span.first, span.last),
        now=now,
        first=first,
        last=last,
        unit=d.unit,
        control=d.control,
        alpha=d.alpha,
        claims=claims(d),
        target=d.target,
        burn_in=evidence.test.burn_in,
        arms=tuple(_arms(d, seen, stopped, weights or d.weights)),
        metrics=tuple(_metric(d, m, role, tallies[m.name], found[m.name], comparisons) for m, role in roles),
        guardrails=guards,
        split=parting,
        tainted=tallies[primary.name].tainted,
        looks=tuple(looked(d, tallies[primary.name], ends)) if len(ends) > 1 and not d.bandit else (),
        values=values,
        verdict=verdict(evidence),
        health=(),
    )
    return replace(report, health=health(report, d))


def _roles(d: Definition) -> list[tuple[Metric, Role]]:
    secondary, guardrails = d.metrics.secondary, d.metrics.guardrails
    return [(d.metrics.primary, "primary"), *((m, "secondary") for m in secondary), *((m, "guardrail") for m in guardrails)]


def _ends(first: float | None, last: float | None, looks: int) -> Sequence[float]:
    if first is None or last is None or first == last or looks == 1:
        return (math.inf,)
    return [first + (last - first) * (k + 1) / looks for k in range(looks)]


def _arms(
    d: Definition, seen: Mapping[str, Acted], stopped: Collection[str], weights: Mapping[str, float]
) -> Iterator[ArmSeen]:
    for arm in d.arms:
        units, requests = (seen[arm.name].units, seen[arm.name].requests) if arm.name in seen else (0, 0)
        yield ArmSeen(arm.name, arm.policy, weights[arm.name], units, requests, arm.name in stopped)


def _values(db: Database, d: Definition, span: Span) -> dict[str, Replayed]:
    return {arm.name: replay(db, span, d.metrics.primary, to_arm(d, arm.name), alpha=d.alpha) for arm in d.arms}


def _metric(  # noqa: PLR0913 - parts of one row
    d: Definition,
    metric: Metric,
    role: Role,
    counted: Tally,
    found: Adjusted,
    comparisons: Mapping[tuple[str, str], Comparison],
) -> MetricFound:
    cells = {arm.name: counted.at(arm.name) for arm in d.arms}
    test = Sequential(d.target, d.alpha)
    means = tuple(
        ArmMean(name, m.n, cells[name].requests, cells[name].values, Estimate.of(test.mean(m)) if m.n else None)
        for name, m in testable(metric, found).items()
    )
    own = tuple(comparison for (name, _), comparison in comparisons.items() if name == metric.name)
    odd = sum(cell.odd for cell in cells.values())
    adjusted = _adjusted(counted, found) if d.pre_s and role == "primary" else ""
    return MetricFound(metric.name, metric.kind, metric.better, role, means, own, odd, adjusted)


def _adjusted(counted: Tally, found: Adjusted) -> str:
    """How much of the variance within arms the past explains."""
    if found.unused:
        return f"not adjusted by earlier values: {found.unused}"
    pairs = [cells[-1].pairs for cells in counted.cells.values()]
    known, units = sum(p.n for p in pairs), sum(arm.n for arm in found.arms.values())
    before, after = sum(p.y.m2 for p in pairs), sum(p.y.m2 - found.theta * p.co for p in pairs)
    share = number(after / before) if before else "1"
    return f"adjusted by earlier values, which {known} of {units} units have; their variance falls to {share} of what it was"
