"""The `merge` field: what a request may ask, and what every answer says.

And what an operator may ask of the policies.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adapters.bank.token_gating import Gating
from adapters.coefficient import Json
from router.decision import ActsFrom
from router.policy import CoefficientField

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MergeRequest(BaseModel):
    """Exactly one of explicit coefficients, of one mix or of several in turn, a policy, an entry of
    the library, a preference."""

    model_config = ConfigDict(extra="forbid", strict=True)

    experts: dict[str, CoefficientField] | None = None
    segments: list[dict[str, CoefficientField]] | None = Field(None, min_length=2, max_length=8)
    """The mixes that answer one after the other, each a segment of the answer."""
    policy: str | None = None
    entry: str | None = None
    preference: dict[str, Share] | None = None
    """How much each task of a front matters, in any unit. A policy may be named with it."""
    read: Annotated[str, Field(min_length=1, max_length=1 << 20)] | None = None
    """A text that policies are to read in place of the prompt; alone, or with a policy or a
    preference."""
    acts_from: ActsFrom | None = None
    """Where the mix begins to act, beside any of the others or alone; before that the base runs."""

    @field_validator("preference")
    @classmethod
    def _wants_something(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and not any(value.values()):
            raise ValueError("at least one share must be more than 0")
        return value


class Segment(BaseModel):
    """A part of an answer that one mix wrote."""

    since: int
    """The number of the answer's token that it begins with."""
    experts: dict[str, Json]
    """The coefficients of its mix; none is the base."""


class MergeInfo(BaseModel):
    """What an answer says of the mix that made it."""

    policy: str
    arm: str | None = None
    """The arm of the experiment that decided, as NAME/ARM."""
    request_id: str | None = None
    """What POST /v1/feedback names such a request by."""
    experts: dict[str, Json]
    """The coefficients of the mix; none is the base."""
    mix: str
    """A short hash of the mix, `base` for the base."""
    gating: Gating | None = None
    """How these experts share each token in each layer, instead of by their coefficients."""
    segments: list[Segment] | None = None
    """Of an answer in several segments, all of them; `experts` and `mix` are the first one's."""
    abstained: bool = False
    """Whether the policy left the request to the base, or to what all experts share."""
    kept: bool = False
    """Whether the mix is that of an earlier turn of the conversation."""
    acts_from: ActsFrom = "start"
    """Where the mix begins to act; what stands before runs as the base, or as earlier turns did."""
    invoked_from: dict[str, int | None] | None = None
    """Of the experts that act only from their invocation on, the token of the prompt at which it
    stands for the last time, null where it does not and the expert does not act."""
    batch: int = 1
    """How many requests of one tenant were decided together, all with this mix."""
    fallback: str | None = None
    """The policy that answered in place of `policy`, if one had to."""
    scores: dict[str, float] = {}
    """The scores of the best experts, in the policy's own units."""
    reason: str = ""
    """Why, in words."""
    router_ms: float = 0.0
    """Milliseconds until the mix was known."""
    warnings: list[str] = []
    """What of the request the server did not heed."""

    def headers(self) -> dict[str, str]:
        """Return the part of it that headers say."""
        found = {"x-tta-policy": self.policy, "x-tta-arm": self.arm, "x-tta-mix": self.mix}
        return {name: value for name, value in found.items() if value is not None}


class ExplainRequest(BaseModel):
    """Ask what these policies, or all, would do with a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=1 << 16)
    policies: list[str] | None = Field(None, min_length=1, max_length=64)


class Explained(BaseModel):
    """What one policy would do with a prompt."""

    policy: str
    experts: dict[str, Json]
    then: list[dict[str, Json]]
    """The mixes that would answer after it, in segments of their own."""
    gating: Gating | None
    scores: dict[str, float]
    floor: float | None
    """The score that an expert must reach."""
    abstained: bool
    reason: str
    fallback: str | None
    router_ms: float
    passes: int
    """How many rows the engine ran for it."""


class ExpertExamples(BaseModel):
    """What policies that learn from examples know of an expert."""

    expert: str
    prompts: int
    """The example prompts that came with it."""
    pinned: int
    """The requests that pinned it and are in force as examples, as it has too few prompts."""
    says: str
    """The same in words, and what would make it better."""


@dataclass(frozen=True)
class ExpertChange:
    """Load an expert from the library's folder, or unload one."""

    name: str
    remove: bool
    replaces: str | None
    """The digest of the expert that has the name now, None if there is to be none."""


@dataclass(frozen=True)
class ConfigChange:
    """Serve by another config."""

    version: int
    given: dict[str, Any]
    """All that may change of it, in the form of its YAML."""
