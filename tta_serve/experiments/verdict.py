"""What the figures mean, in sentences."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from router.experiments.definition import Definition
from router.experiments.moments import Moments
from router.experiments.sequential import Sequential
from tta_serve.experiments.comparing import treatments
from tta_serve.experiments.results import ArmMean, Comparison, Guarded, MetricFound, Report, Split, Verdict
from tta_serve.experiments.words import chance, percent, spread

_MISSING = 0.01  # share of requests without a value that is worth a word
_READINGS = {
    "better": "is better than {control} in {metric}",
    "worse": "is worse than {control} in {metric}",
    "undecided": "is not surely different from {control} in {metric}",
}


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on. arms: moments of the primary metric   primary: comparisons in it, by treatment, none with a
    bandit   test: of one claim"""

    definition: Definition
    arms: Mapping[str, Moments]
    primary: Mapping[str, Comparison]
    guardrails: Sequence[Guarded]
    split: Split
    stopped: Collection[str]
    test: Sequential

    @property
    def breached(self) -> set[str]:
        return {guard.arm for guard in self.guardrails if guard.breached}

    @property
    def running(self) -> list[str]:
        """Treatments that may win."""
        return [arm for arm in treatments(self.definition) if arm not in self.breached and arm not in self.stopped]


def verdict(evidence: Evidence) -> Verdict:
    """The winner is a treatment that is better than the control in the primary metric by Holm's p-value, is not surely worse
    than another one, breaches no guardrail and was not stopped; of several such the one with the best mean. It is the
    control if every treatment is worse or breaches a guardrail. There is none while the split is not what it should be."""
    d = evidence.definition
    words = [_compared(d, comparison) for comparison in evidence.primary.values() if comparison.difference]
    words += [f"{guard.why}." for guard in evidence.guardrails if guard.breached]
    if not any(arm.n for arm in evidence.arms.values()):
        return Verdict(None, (f"No verdict: {d.metrics.primary.name} is not known of anybody yet.",), ())
    if d.bandit:
        return Verdict(None, ("No verdict: a bandit moves traffic to the better arms, and claims nothing.", *words), ())
    if evidence.split.alert:
        return Verdict(
            None, ("No verdict: the units are not split as they should be, so no result can be trusted.", *words), ()
        )
    lost = evidence.breached | {arm for arm, c in evidence.primary.items() if c.reading == "worse"}
    if lost.issuperset(treatments(d)):
        return Verdict(
            d.control, (f"The control, {d.control}, stays: every treatment is worse or breaches a guardrail.", *words), ()
        )
    if not (good := _good(evidence)):
        return Verdict(None, ("Undecided.", *words), tuple(_missing(evidence)))
    as_good = [f"{arm} is better than {d.control} too, and not surely worse than {good[0]}." for arm in good[1:]]
    return Verdict(good[0], (f"The winner is {good[0]}.", *words, *as_good), ())


def _good(evidence: Evidence) -> list[str]:
    """Treatments that may be called the winner, the best mean first."""
    arms, sign = evidence.arms, 1 if evidence.definition.metrics.primary.better == "higher" else -1

    def beaten(arm: str) -> bool:
        gaps = [evidence.test.difference(arms[arm], arms[other]) for other in evidence.running if other != arm]
        return any(gap.low > 0 if sign > 0 else gap.high < 0 for gap in gaps)

    good = [arm for arm in evidence.running if evidence.primary[arm].reading == "better" and not beaten(arm)]
    return sorted(good, key=lambda arm: -sign * arms[arm].mean)


def _compared(definition: Definition, comparison: Comparison) -> str:
    metric = definition.metrics.primary.name
    said = _READINGS[comparison.reading].format(control=definition.control, metric=metric)
    return f"{comparison.arm} {said}: {spread(comparison.difference, sign=True)}, p {chance(comparison.p_holm)} after Holm."


def _missing(evidence: Evidence) -> Iterator[str]:
    arms, least = evidence.arms, evidence.test.burn_in
    for arm in evidence.running:
        found, n = evidence.primary[arm], min(arms[arm].n, arms[evidence.definition.control].n)
        if n < least:
            yield f"{arm}: nothing is claimed before {least} units in each arm; the smaller one has {n}."
        elif found.reading == "undecided" and found.needed is None:
            yield f"{arm}: a difference as small as today's would not be found by any number of units worth waiting for."
        elif found.reading == "undecided":
            yield f"{arm}: {found.needed} units per arm would find a true difference like today's with 80 %; it has {n}."


def health(report: Report, definition: Definition) -> tuple[str, ...]:
    """What whoever reads the report has to know of its data."""
    return (*_of_arms(report, definition), *(line for metric in report.metrics for line in _of_values(metric)))


def _of_arms(report: Report, definition: Definition) -> Iterator[str]:
    yield f"Split: {report.split.why}."
    if few := [f"{seen.arm} ({seen.units})" for seen in report.arms if seen.units < report.burn_in]:
        yield f"Fewer than {report.burn_in} units, so that nothing is claimed: {', '.join(few)}."
    if report.tainted:
        yield f"Two arms: {report.tainted} units saw more than one arm and are left out of all comparisons."
    if stopped := [seen.arm for seen in report.arms if seen.stopped]:
        yield (
            f"Stopped: {', '.join(stopped)}. Those of its units that came back afterwards have seen two arms; its figures are "
            "of the others, who may be unlike them."
        )
    if definition.bandit:
        yield (
            "Bandit: arms' shares of the traffic follow their outcomes. Means are of unlike times, and their intervals and "
            "guardrails only approximate; the arms' values are corrected for it by the logged propensities. A unit that was "
            "moved counts in each arm that it saw."
        )


def _of_values(metric: MetricFound) -> Iterator[str]:
    requests, values = sum(arm.requests for arm in metric.arms), sum(arm.values for arm in metric.arms)
    if requests and 1 - values / requests > _MISSING:
        shares = ", ".join(f"{arm.arm} {percent(_without(arm))}" for arm in metric.arms)
        yield f"No {metric.name}: {percent(1 - values / requests)} of the requests ({shares})."
    if metric.odd:
        yield f"{metric.name}: {metric.odd} units are left out, as their mean is not in [0, 1]; is it a `mean`, not a `share`?"


def _without(arm: ArmMean) -> float:
    return 1 - arm.values / arm.requests if arm.requests else 0.0
