"""What the figures mean, in sentences."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tta_serve.experiments.analysis.comparisons import treatments
from tta_serve.experiments.analysis.formatting import format_estimate, format_p, format_percent
from tta_serve.experiments.analysis.results import (
    ArmMean,
    Comparison,
    GuardrailResult,
    MetricResult,
    Report,
    Split,
    Verdict,
)
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.statistics.moments import Moments
from tta_serve.experiments.statistics.sequential import Sequential

_MISSING = 0.01  # the share of requests without a value that is worth a word
_READINGS = {
    "better": "is better than {control} in {metric}",
    "worse": "is worse than {control} in {metric}",
    "undecided": "is not surely different from {control} in {metric}",
}


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on."""

    definition: Definition
    arms: Mapping[str, Moments]
    """The moments of the primary metric, by arm."""
    primary: Mapping[str, Comparison]
    """The comparisons in the primary metric, by treatment; none with a bandit."""
    guardrails: Sequence[GuardrailResult]
    split: Split
    stopped: Collection[str]
    """The arms that were ever stopped."""
    test: Sequential
    """The test of one claim."""

    @property
    def breached(self) -> set[str]:
        """The arms that breach a guardrail."""
        return {guardrail.arm for guardrail in self.guardrails if guardrail.breached}

    @property
    def running(self) -> list[str]:
        """The treatments that may win."""
        return [
            arm
            for arm in treatments(self.definition)
            if arm not in self.breached and arm not in self.stopped
        ]


def reach_verdict(evidence: Evidence) -> Verdict:
    """Say who won, if that is known.

    The winner is a treatment that is better than the control in the primary metric by Holm's
    p-value, is not surely worse than another one, breaches no guardrail and was not stopped; of
    several such the one with the best mean. It is the control if every treatment is worse or
    breaches a guardrail. There is none while the split is not what it should be.
    """
    definition = evidence.definition
    control = definition.control
    if not any(arm.n for arm in evidence.arms.values()):
        nobody = f"No verdict: {definition.metrics.primary.name} is not known of anybody yet."
        return Verdict(None, (nobody,), ())

    reasons = tuple(_give_reasons(evidence))
    if definition.bandit:
        nothing = "No verdict: a bandit moves traffic to the better arms, and claims nothing."
        return Verdict(None, (nothing, *reasons), ())
    if evidence.split.alert:
        distrust = (
            "No verdict: the units are not split as they should be, so no result can be trusted."
        )
        return Verdict(None, (distrust, *reasons), ())

    worse = {arm for arm, found in evidence.primary.items() if found.reading == "worse"}
    if (evidence.breached | worse).issuperset(treatments(definition)):
        stays = f"The control, {control}, stays: every treatment is worse or breaches a guardrail."
        return Verdict(control, (stays, *reasons), ())

    candidates = _find_candidates(evidence)
    if not candidates:
        return Verdict(None, ("Undecided.", *reasons), tuple(_say_what_is_missing(evidence)))
    winner, *others = candidates
    as_good = [
        f"{arm} is better than {control} too, and not surely worse than {winner}." for arm in others
    ]
    return Verdict(winner, (f"The winner is {winner}.", *reasons, *as_good), ())


def _give_reasons(evidence: Evidence) -> Iterator[str]:
    definition = evidence.definition
    metric = definition.metrics.primary.name
    for comparison in evidence.primary.values():
        if comparison.difference:
            reading = _READINGS[comparison.reading]
            yield (
                f"{comparison.arm} {reading.format(control=definition.control, metric=metric)}:"
                f" {format_estimate(comparison.difference, sign=True)}, p"
                f" {format_p(comparison.p_holm)} after Holm."
            )
    for guardrail in evidence.guardrails:
        if guardrail.breached:
            yield f"{guardrail.why}."


def _find_candidates(evidence: Evidence) -> list[str]:
    """Return the treatments that may be called the winner, the best mean first."""
    arms = evidence.arms
    sign = 1 if evidence.definition.metrics.primary.better == "higher" else -1

    def is_beaten(arm: str) -> bool:
        gaps = [
            evidence.test.difference(arms[arm], arms[other])
            for other in evidence.running
            if other != arm
        ]
        return any(gap.low > 0 if sign > 0 else gap.high < 0 for gap in gaps)

    candidates = [
        arm
        for arm in evidence.running
        if evidence.primary[arm].reading == "better" and not is_beaten(arm)
    ]
    return sorted(candidates, key=lambda arm: -sign * arms[arm].mean)


def _say_what_is_missing(evidence: Evidence) -> Iterator[str]:
    least = evidence.test.burn_in
    control = evidence.arms[evidence.definition.control]
    for arm in evidence.running:
        comparison = evidence.primary[arm]
        n = min(evidence.arms[arm].n, control.n)
        if n < least:
            yield (
                f"{arm}: nothing is claimed before {least} units in each arm; the smaller one has"
                f" {n}."
            )
        elif comparison.reading == "undecided" and comparison.needed is None:
            yield (
                f"{arm}: a difference as small as today's would not be found by any number of units"
                " worth waiting for."
            )
        elif comparison.reading == "undecided":
            yield (
                f"{arm}: {comparison.needed} units per arm would find a true difference like"
                f" today's with 80 %; it has {n}."
            )


def describe_health(report: Report, definition: Definition) -> tuple[str, ...]:
    """Say what whoever reads the report has to know of its data."""
    return (
        *_describe_arms(report, definition),
        *(line for metric in report.metrics for line in _describe_values(metric)),
    )


def _describe_arms(report: Report, definition: Definition) -> Iterator[str]:
    yield f"Split: {report.split.why}."
    if few := [f"{arm.arm} ({arm.units})" for arm in report.arms if arm.units < report.burn_in]:
        yield f"Fewer than {report.burn_in} units, so that nothing is claimed: {', '.join(few)}."
    if report.tainted:
        yield (
            f"Two arms: {report.tainted} units saw more than one arm and are left out of all"
            " comparisons."
        )
    if stopped := [arm.arm for arm in report.arms if arm.stopped]:
        yield (
            f"Stopped: {', '.join(stopped)}. Those of its units that came back afterwards have seen"
            " two arms; its figures are of the others, who may be unlike them."
        )
    if definition.bandit:
        yield (
            "Bandit: arms' shares of the traffic follow their outcomes. Means are of unlike times,"
            " and their intervals and guardrails only approximate; the arms' values are corrected"
            " for it by the logged propensities. A unit that was moved counts in each arm that it"
            " saw."
        )


def _describe_values(metric: MetricResult) -> Iterator[str]:
    requests = sum(arm.requests for arm in metric.arms)
    values = sum(arm.values for arm in metric.arms)
    if requests and 1 - values / requests > _MISSING:
        shares = ", ".join(
            f"{arm.arm} {format_percent(_share_without(arm))}" for arm in metric.arms
        )
        whole = format_percent(1 - values / requests)
        yield f"No {metric.name}: {whole} of the requests ({shares})."
    if metric.odd:
        yield (
            f"{metric.name}: {metric.odd} units are left out, as their mean is not in [0, 1]; is it"
            " a `mean`, not a `share`?"
        )


def _share_without(arm: ArmMean) -> float:
    return 1 - arm.values / arm.requests if arm.requests else 0.0
