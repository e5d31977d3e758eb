"""What an analysis found: plain values, which `dataclasses.asdict` makes JSON of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from tta_serve.experiments.statistics.offpolicy import Range
from tta_serve.experiments.statistics.sequential import Interval

Reading = Literal["better", "worse", "undecided"]
Role = Literal["primary", "secondary", "guardrail"]


@dataclass(frozen=True)
class Estimate:
    """A value, and an interval that may be without a bound on either side."""

    value: float
    low: float | None
    """The lower bound, None for none."""
    high: float | None
    """The upper bound, None for none."""

    @classmethod
    def of(cls, found: Interval | Range) -> Self:
        """Return what a statistic found, with None in place of infinite bounds."""
        return cls(found.estimate, _finite_or_none(found.low), _finite_or_none(found.high))


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class ArmSummary:
    """An arm, and the traffic that it acted on."""

    arm: str
    policy: str
    share: float
    """The share of the units that it should have."""
    units: int
    """How many units it acted on."""
    requests: int
    """How many requests it acted on."""
    stopped: bool
    """Whether it was ever stopped."""


@dataclass(frozen=True)
class ArmMean:
    """A metric in one arm."""

    arm: str
    units: int
    """How many units count: those that have the metric and saw no other arm."""
    requests: int
    """The requests of the units that saw no other arm."""
    values: int
    """How many of these requests have a value."""
    mean: Estimate | None
    """The mean with its confidence sequence of level 1 - alpha, None without units."""


@dataclass(frozen=True)
class Comparison:
    """A treatment against the control, in one metric."""

    arm: str
    """The treatment."""
    difference: Estimate | None
    """Treatment - control, with its confidence sequence of level 1 - alpha / claims; None if an arm
    has no units."""
    relative: Estimate | None
    """The same as a share of the control's mean, None where that may be 0."""
    p: float
    """The p-value, valid at every look."""
    p_holm: float
    """The p-value after Holm's correction for all claims together."""
    reading: Reading
    """What `p_holm` and alpha say."""
    needed: int | None = None
    """Units per arm that find a true difference of this size with probability 0.8, None if nothing
    says so."""
    detectable: float | None = None
    """The least difference that as many units as there are find with that probability."""


@dataclass(frozen=True)
class MetricResult:
    """A metric in all arms, and the treatments' comparisons in it."""

    name: str
    kind: str
    better: str
    role: Role
    arms: tuple[ArmMean, ...]
    comparisons: tuple[Comparison, ...]
    """Empty for a guardrail, and with a bandit."""
    odd: int
    """How many units are left out because their mean is no share."""
    adjusted: str = ""
    """How values from before the experiment were used, "" if none were asked for."""


@dataclass(frozen=True)
class GuardrailResult:
    """A guardrail on one treatment."""

    metric: str
    arm: str
    tolerated: float
    worse_by: Estimate
    """How much worse than the control it is, below 0 if it is better; `low` is the bound of a
    one-sided confidence sequence of level 1 - alpha."""
    breached: bool
    """Whether `worse_by.low` is above `tolerated`."""
    why: str
    """A sentence about the breach, "" if there is none."""


@dataclass(frozen=True)
class Split:
    """The test for a sample ratio mismatch."""

    p: float | None
    """The p-value, None where the split is not tested."""
    alert: bool
    """Whether the split is not what it should be."""
    counts: Mapping[str, int]
    """The units of each arm that is tested."""
    expected: Mapping[str, float]
    """The units that each of these arms should have."""
    why: str
    """A sentence about the split."""


@dataclass(frozen=True)
class Look:
    """The primary difference as one could have known it at some time."""

    time: float
    """UTC seconds since 1970."""
    arm: str
    """The treatment."""
    difference: Estimate


@dataclass(frozen=True)
class ReplayResult:
    """What a policy would have been worth on the logged traffic.

    Intervals are of level 1 - alpha, for one look.
    """

    metric: str
    units: int
    """How many units are replayed."""
    requests: int
    """How many requests have a value."""
    without: int
    """How many requests have none."""
    served: Estimate
    """What the traffic was worth as it was served."""
    ips: Estimate
    """By inverse propensities; what the log does not cover counts as 0."""
    snips: Estimate | None
    """Self-normalised, None where the log covers nothing."""
    clipped: Estimate | None
    """With clipped weights, None where rewards are not in [0, 1]."""
    clip: float
    """The largest of the clipped weights."""
    effective: float
    """The effective sample size, in units."""
    covered: Estimate
    """The share of the policy's decisions that the log can tell of."""


@dataclass(frozen=True)
class Verdict:
    """Who won, in words."""

    winner: str | None
    """The arm that won, None if that is not known."""
    words: tuple[str, ...]
    """The verdict and its reasons, in sentences."""
    missing: tuple[str, ...]
    """What a decision waits for, in sentences."""


@dataclass(frozen=True)
class Report:
    """All that is known of an experiment at one time."""

    experiment: str
    versions: tuple[int, int | None]
    """The first and the last version whose logs are read, None for the newest."""
    now: float
    """When the report was made, UTC seconds since 1970."""
    first: float | None
    """The time of the first exposure, None without any."""
    last: float | None
    """The time of the last exposure, None without any."""
    unit: str
    """What is assigned: `user`, `session` or `request`."""
    control: str
    alpha: float
    claims: int
    """How many comparisons are read together."""
    target: int
    """Units per arm at which the intervals are tightest."""
    burn_in: int
    """Units per arm before anything is claimed."""
    arms: tuple[ArmSummary, ...]
    metrics: tuple[MetricResult, ...]
    guardrails: tuple[GuardrailResult, ...]
    split: Split
    tainted: int
    """How many units saw two arms, and are left out."""
    looks: tuple[Look, ...]
    """The primary differences over time; none with a bandit."""
    values: Mapping[str, ReplayResult]
    """What each arm is worth by off-policy estimates; only with a bandit."""
    verdict: Verdict
    health: tuple[str, ...]
    """What one has to know of the data, in sentences."""
