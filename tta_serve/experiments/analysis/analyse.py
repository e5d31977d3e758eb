"""What an experiment's logs say, as one report.

It has every arm, every treatment against the control, the guardrails, the split and a verdict.

Intervals of arms and of differences are confidence sequences, and p-values always valid
(`tta_serve.experiments.statistics.sequential`): they hold at every look. Arms' means are given at
level 1 - alpha, each for itself. Treatments times the primary and secondary metrics are claims read
together: p-values are Holm's, intervals those of alpha / claims. Guardrails are each for itself, as
to keep a bad arm is worse than to stop a good one.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tta_serve.experiments.analysis.comparisons import (
    adjusted_moments,
    claim_test,
    compare_arms,
    count_claims,
    difference_over_time,
    testable_moments,
)
from tta_serve.experiments.analysis.formatting import format_number
from tta_serve.experiments.analysis.guardrails import check_guardrail
from tta_serve.experiments.analysis.replay import replay
from tta_serve.experiments.analysis.replay_targets import target_arm
from tta_serve.experiments.analysis.results import (
    ArmMean,
    ArmSummary,
    Comparison,
    Estimate,
    GuardrailResult,
    Look,
    MetricResult,
    ReplayResult,
    Report,
    Role,
    Split,
    Verdict,
)
from tta_serve.experiments.analysis.sample_ratio import check_split
from tta_serve.experiments.analysis.tallies import (
    ArmTraffic,
    MetricTally,
    read_traffic,
    tally_metric,
)
from tta_serve.experiments.analysis.verdict import Evidence, describe_health, reach_verdict
from tta_serve.experiments.design.definition import Definition, Metric
from tta_serve.experiments.statistics.cuped import Adjusted
from tta_serve.experiments.statistics.sequential import Sequential
from tta_serve.store.database import Database
from tta_serve.store.records import Span

LOOKS = 30


@dataclass(frozen=True)
class Collected:
    """What the logs say, as sums."""

    traffic: Mapping[str, ArmTraffic]
    """What each arm acted on."""
    first: float | None
    """The time of the first exposure, None without any."""
    last: float | None
    """The time of the last exposure, None without any."""
    ends: Sequence[float]
    """The times at which the primary difference is known."""
    tallies: Mapping[str, MetricTally]
    """The sums of each metric."""
    moments: Mapping[str, Adjusted]
    """The arms' moments in each metric."""
    values: Mapping[str, ReplayResult]
    """What each arm is worth off-policy; only with a bandit."""


@dataclass(frozen=True)
class Judgement:
    """What the sums mean."""

    comparisons: Mapping[tuple[str, str], Comparison]
    """The claims, by metric and treatment."""
    guardrails: tuple[GuardrailResult, ...]
    split: Split
    verdict: Verdict


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
    """Return the report of an experiment.

    It takes one pass over the logs for each metric, and with a bandit for each arm.

    Args:
        span: The versions with this definition.
        now: UTC seconds since 1970.
        stopped: The arms that were ever stopped.
        weights: A bandit's weights, as they are now.
        looks: At how many times, between the first and the last exposure, the primary difference is
            to be known.
    """
    collected = collect(db, definition, span, looks)
    judgement = judge(definition, collected, stopped)
    arms = tuple(_arms(definition, collected.traffic, stopped, weights or definition.weights))
    return assemble(definition, span, now, arms, collected, judgement)


def collect(db: Database, definition: Definition, span: Span, looks: int) -> Collected:
    """Read all that the logs say of an experiment."""
    traffic = read_traffic(db, span)
    first = min((arm.first for arm in traffic.values()), default=None)
    last = max((arm.last for arm in traffic.values()), default=None)
    ends = _look_times(first, last, looks)
    before = None
    if definition.pre_s and first is not None:
        before = first - definition.pre_s, first

    primary = definition.metrics.primary
    moving = definition.bandit is not None
    tallies = {primary.name: tally_metric(db, span, primary, ends, before, moving)}
    for metric in definition.metrics.all[1:]:
        tallies[metric.name] = tally_metric(db, span, metric, moving=moving)
    moments = {
        metric.name: adjusted_moments(tallies[metric.name], metric, definition)
        for metric in definition.metrics.all
    }

    values = {}
    if moving and any(arm.n for arm in moments[primary.name].arms.values()):
        values = _value_arms(db, definition, span)
    return Collected(traffic, first, last, ends, tallies, moments, values)


def _look_times(first: float | None, last: float | None, looks: int) -> Sequence[float]:
    if first is None or last is None or first == last or looks == 1:
        return (math.inf,)
    return [first + (last - first) * (k + 1) / looks for k in range(looks)]


def _value_arms(db: Database, definition: Definition, span: Span) -> dict[str, ReplayResult]:
    """Return what each arm would have been worth to all units."""
    metric = definition.metrics.primary
    return {
        arm.name: replay(db, span, metric, target_arm(definition, arm.name), alpha=definition.alpha)
        for arm in definition.arms
    }


def judge(definition: Definition, collected: Collected, stopped: Collection[str]) -> Judgement:
    """Compare the arms, check guardrails and split, and reach a verdict."""
    primary = definition.metrics.primary
    comparisons = {} if definition.bandit else compare_arms(definition, collected.moments)
    guardrails = tuple(
        result
        for guardrail in definition.metrics.guardrails
        for result in check_guardrail(collected.tallies[guardrail.name], guardrail, definition)
    )
    units = {name: arm.units for name, arm in collected.traffic.items()}
    split = check_split(definition, units, stopped)
    evidence = Evidence(
        definition=definition,
        arms=testable_moments(primary, collected.moments[primary.name]),
        primary={arm: found for (name, arm), found in comparisons.items() if name == primary.name},
        guardrails=guardrails,
        split=split,
        stopped=stopped,
        test=claim_test(definition),
    )
    return Judgement(comparisons, guardrails, split, reach_verdict(evidence))


def assemble(  # noqa: PLR0913 - the parts of a report
    definition: Definition,
    span: Span,
    now: float,
    arms: tuple[ArmSummary, ...],
    collected: Collected,
    judgement: Judgement,
) -> Report:
    """Put together what was read and what it means."""
    primary = collected.tallies[definition.metrics.primary.name]
    looks: tuple[Look, ...] = ()
    if len(collected.ends) > 1 and not definition.bandit:
        looks = tuple(difference_over_time(definition, primary, collected.ends))
    report = Report(
        experiment=definition.name,
        versions=(span.first, span.last),
        now=now,
        first=collected.first,
        last=collected.last,
        unit=definition.unit,
        control=definition.control,
        alpha=definition.alpha,
        claims=count_claims(definition),
        target=definition.target,
        burn_in=claim_test(definition).burn_in,
        arms=arms,
        metrics=tuple(_metrics(definition, collected, judgement)),
        guardrails=judgement.guardrails,
        split=judgement.split,
        tainted=primary.tainted,
        looks=looks,
        values=collected.values,
        verdict=judgement.verdict,
        health=(),
    )
    return replace(report, health=describe_health(report, definition))


def _arms(
    definition: Definition,
    traffic: Mapping[str, ArmTraffic],
    stopped: Collection[str],
    weights: Mapping[str, float],
) -> Iterator[ArmSummary]:
    for arm in definition.arms:
        seen = traffic.get(arm.name)
        yield ArmSummary(
            arm=arm.name,
            policy=arm.policy,
            share=weights[arm.name],
            units=seen.units if seen else 0,
            requests=seen.requests if seen else 0,
            stopped=arm.name in stopped,
        )


def _metrics(
    definition: Definition, collected: Collected, judgement: Judgement
) -> Iterator[MetricResult]:
    for metric, role in _roles(definition):
        tally = collected.tallies[metric.name]
        moments = collected.moments[metric.name]
        comparisons = tuple(
            found for (name, _), found in judgement.comparisons.items() if name == metric.name
        )
        adjusted = ""
        if definition.pre_s and role == "primary":
            adjusted = _say_adjusted(tally, moments)
        yield MetricResult(
            name=metric.name,
            kind=metric.kind,
            better=metric.better,
            role=role,
            arms=tuple(_means(definition, metric, tally, moments)),
            comparisons=comparisons,
            odd=sum(tally.at(arm.name).odd for arm in definition.arms),
            adjusted=adjusted,
        )


def _roles(definition: Definition) -> Iterator[tuple[Metric, Role]]:
    yield definition.metrics.primary, "primary"
    for metric in definition.metrics.secondary:
        yield metric, "secondary"
    for guardrail in definition.metrics.guardrails:
        yield guardrail, "guardrail"


def _means(
    definition: Definition, metric: Metric, tally: MetricTally, found: Adjusted
) -> Iterator[ArmMean]:
    test = Sequential(definition.target, definition.alpha)
    for name, moments in testable_moments(metric, found).items():
        sums = tally.at(name)
        mean = Estimate.of(test.mean(moments)) if moments.n else None
        yield ArmMean(name, moments.n, sums.requests, sums.values, mean)


def _say_adjusted(tally: MetricTally, found: Adjusted) -> str:
    """Say how much of the variance within arms the past explains."""
    if found.unused:
        return f"not adjusted by earlier values: {found.unused}"
    pairs = [sums[-1].pairs for sums in tally.arms.values()]
    known = sum(arm.n for arm in pairs)
    units = sum(arm.n for arm in found.arms.values())
    before = sum(arm.y.m2 for arm in pairs)
    after = sum(arm.y.m2 - found.theta * arm.co for arm in pairs)
    share = format_number(after / before) if before else "1"
    return (
        f"adjusted by earlier values, which {known} of {units} units have; their variance falls to"
        f" {share} of what it was"
    )
