"""Rows as values. Fields are called as their columns; times are UTC, in seconds since 1970."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["draft", "running", "stopped"]


@dataclass(frozen=True)
class Experiment:
    """One version of an experiment. definition: JSON text, which the store does not read   changed: when this version began"""

    name: str
    version: int
    state: State
    definition: str
    created: float
    changed: float


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One request that an arm acted on.

    version: of the experiment   unit: a hash, never a name   mix: `MergeInfo.mix`   propensity: the probability that
    this unit got this arm, in (0, 1]   fallback: the policy that answered in place of `policy`
    ttft_ms: time to first token, None where the answer was not streamed   outcome: as `metrics.requests` counts it
    shadow: what another policy would have done
    """

    request_id: str
    experiment: str
    version: int
    arm: str
    unit: str
    policy: str
    policy_version: str
    mix: str
    propensity: float
    abstained: bool = False
    fallback: str | None = None
    router_ms: float
    ttft_ms: float | None = None
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    outcome: str
    shadow: Mapping[str, Any] | None = None
    time: float


@dataclass(frozen=True)
class Outcome:
    """What a request turned out to be worth in one metric, as somebody said who saw its answer."""

    request_id: str
    metric: str
    value: float
    time: float
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Setting:
    """version: 1 at first, one more at every change"""

    key: str
    value: Any
    version: int


@dataclass(frozen=True)
class PromptText:
    """The text of a request's last user turn."""

    request_id: str
    text: str
    time: float
