"""What every policy takes and gives, and the table of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from adapters.mix import Mix, MixRules


class RouterError(ValueError):
    """A policy is configured wrongly; the message says what would have worked."""


@dataclass(frozen=True)
class Prompt:
    """What a policy may read of a request. user_turn: the text of the last user turn, or the prompt of a completion."""

    user_turn: str


@dataclass(frozen=True)
class Decision:
    """A policy's answer. scores: by expert, in the policy's own units; abstained: the base answers because no expert fits."""

    mix: Mix
    scores: Mapping[str, float] = field(default_factory=dict)
    abstained: bool = False
    reason: str = ""


class Probe(Protocol):
    """What a policy may ask of the engine."""

    async def features(self, text: str) -> Tensor:
        """The mean over the text's tokens of the input of the base's tapped early layer. Returns [hidden], float32."""
        ...


@dataclass(frozen=True)
class Context:
    """What a policy is built from. examples: prompts by expert; everyday: prompts that no expert should answer."""

    rules: MixRules
    examples: Mapping[str, Sequence[str]]
    everyday: Sequence[str]
    probe: Probe


class Options(BaseModel):
    """A policy's settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Policy(ABC):
    """One way to choose a mix. To add one: subclass, and a row in `router.table.POLICIES`."""

    Options: ClassVar[type[Options]]
    reads_features: ClassVar[bool] = False  # whether it asks the probe, so that the engine must have a tap

    @classmethod
    @abstractmethod
    async def create(cls, options: Any, context: Context) -> Self:
        """Build the policy, calibrated on the context alone. Raises RouterError."""

    @abstractmethod
    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        """Decide for one prompt."""
