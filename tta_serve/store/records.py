"""Rows as values: fields are called as their columns, times are UTC, in seconds since 1970."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["draft", "running", "stopped"]


@dataclass(frozen=True)
class Experiment:
    """One version of an experiment."""

    name: str
    version: int
    state: State
    definition: str
    """JSON text, which the store does not read."""
    created: float
    """When the first version was made."""
    changed: float
    """When this version was made."""


@dataclass(frozen=True)
class Span:
    """A run of versions of an experiment, whose logs are read together."""

    experiment: str
    first: int = 1
    """The first of the versions."""
    last: int | None = None
    """The last of the versions, itself included; None for the newest, whichever that is."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One request that an arm acted on."""

    request_id: str
    experiment: str
    version: int
    """The experiment's version."""
    arm: str
    unit: str
    """The hash of the unit that was assigned, never a name."""
    policy: str
    policy_version: str
    mix: str
    """The digest of the mix that answered, as `MergeInfo.mix` has it."""
    propensity: float
    """The probability that this unit got this arm, in (0, 1]."""
    abstained: bool = False
    """Whether the policy did not decide, so that the base answered."""
    fallback: str | None = None
    """The policy that answered in place of `policy`."""
    router_ms: float
    """How long the decision took."""
    ttft_ms: float | None = None
    """The time to the first token, None where the answer was not streamed."""
    total_ms: float
    """How long the whole request took."""
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    outcome: str
    """How the request ended, as `metrics.requests` counts it."""
    shadow: Mapping[str, Any] | None = None
    """What the shadow policy would have done."""
    time: float
    """When the request ended."""


@dataclass(frozen=True)
class Outcome:
    """What a request turned out to be worth in one metric, as whoever saw its answer said."""

    request_id: str
    metric: str
    value: float
    time: float
    idempotency_key: str | None = None
    """The key of the call that sent it, so that the call can be repeated."""


@dataclass(frozen=True)
class Setting:
    """A value that is kept under a key and survives restarts."""

    key: str
    value: Any
    """Anything that JSON can hold."""
    version: int
    """1 at first, one more at every change."""


@dataclass(frozen=True)
class PromptText:
    """The text of a request's last user turn."""

    request_id: str
    text: str
    time: float
