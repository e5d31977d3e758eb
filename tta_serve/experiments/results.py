"""What an analysis found: plain values, which `dataclasses.asdict` makes JSON of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from router.experiments.offpolicy import Range
from router.experiments.sequential import Interval

Reading = Literal["better", "worse", "undecided"]
Role = Literal["primary", "secondary", "guardrail"]


@dataclass(frozen=True)
class Estimate:
    """A value, and an interval from low to high; None: without a bound on that side."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, found: Interval | Range) -> Self:
        return cls(found.estimate, _bound(found.low), _bound(found.high))


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class ArmSeen:
    """share: of the units that it should have   units: all that it acted on   stopped: whether it ever was"""

    arm: str
    policy: str
    share: float
    units: int
    requests: int
    stopped: bool


@dataclass(frozen=True)
class ArmMean:
    """units: that count   mean: with its confidence sequence of level 1 - alpha, None without units

    requests: of those units   values: how many of them have one
    """

    arm: str
    units: int
    requests: int
    values: int
    mean: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """A treatment against the control.

    difference: treatment - control, with its confidence sequence of level 1 - alpha / claims; None if an arm has no units
    relative: the same as a share of the control's mean, None where that may be 0
    p: always valid   p_holm: of all claims together   reading: by p_holm and alpha
    needed: units per arm that find a true difference of this size with probability 0.8, None if nothing says so
    detectable: the least difference that as many units as there are find with that probability
    """

    arm: str
    difference: Estimate | None
    relative: Estimate | None
    p: float
    p_holm: float
    reading: Reading
    needed: int | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class MetricFound:
    """adjusted: how the values of before the experiment were used, "" if none were asked for   odd: units left out as their
    mean is no share"""

    name: str
    kind: str
    better: str
    role: Role
    arms: tuple[ArmMean, ...]
    comparisons: tuple[Comparison, ...]
    odd: int
    adjusted: str = ""


@dataclass(frozen=True)
class Guarded:
    """A guardrail on one treatment. worse_by: how much worse than the control it is, below 0 if it is better; low is the
    bound of a one-sided confidence sequence of level 1 - alpha   breached: low > tolerated"""

    metric: str
    arm: str
    tolerated: float
    worse_by: Estimate
    breached: bool
    why: str


@dataclass(frozen=True)
class Split:
    """Sample ratio mismatch. p: None where it is not asked   counts, expected: units, by arm"""

    p: float | None
    alert: bool
    counts: Mapping[str, int]
    expected: Mapping[str, float]
    why: str


@dataclass(frozen=True)
class Look:
    """The primary difference as one could have seen it then. time: UTC seconds since 1970"""

    time: float
    arm: str
    difference: Estimate


@dataclass(frozen=True)
class Replayed:
    """What a policy would have been worth on the logged traffic. Intervals are of level 1 - alpha, for one look.

    served: what the traffic was worth as it was served   ips, snips, clipped: None where they are not to be had
    clip: of the clipped weights   effective: sample size, in units   covered: share of the policy's decisions of which the log
    may tell   units, requests: with a value   without: requests without one
    """

    metric: str
    units: int
    requests: int
    without: int
    served: Estimate
    ips: Estimate
    snips: Estimate | None
    clipped: Estimate | None
    clip: float
    effective: float
    covered: Estimate


@dataclass(frozen=True)
class Verdict:
    """winner: an arm, None if it is not known   words: sentences   missing: what a decision waits for"""

    winner: str | None
    words: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """first, last: times of exposures, None without any   claims: comparisons that are read together
    burn_in: units per arm before any of them   tainted: units that saw two arms, which are left out
    looks, values: not with a bandit, and only with one, whose arms are given their values by off-policy estimates
    """

    experiment: str
    versions: tuple[int, int | None]
    now: float
    first: float | None
    last: float | None
    unit: str
    control: str
    alpha: float
    claims: int
    target: int
    burn_in: int
    arms: tuple[ArmSeen, ...]
    metrics: tuple[MetricFound, ...]
    guardrails: tuple[Guarded, ...]
    split: Split
    tainted: int
    looks: tuple[Look, ...]
    values: Mapping[str, Replayed]
    verdict: Verdict
    health: tuple[str, ...]
