"""The interface of a policy: its options, what it is built from, and what it must do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator
from torch import Tensor

from adapters.coefficient import Coefficient, from_json, to_json
from adapters.files.facts import FORM_NAMES
from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.probing import Probe

CoefficientField = Annotated[Coefficient, PlainValidator(from_json), PlainSerializer(to_json)]

EVERYDAY = Path(str(files("router") / "everyday.txt"))
"""Prompts that no expert should answer, for libraries that bring none of their own."""


@dataclass(frozen=True)
class Context:
    """What a policy is built from: the library that it chooses from, and the engine's probe."""

    rules: MixRules
    """Which experts there are, and which mixes of them are allowed."""
    examples: Mapping[str, Sequence[str]]
    """Prompts by the expert that should answer them."""
    everyday: Sequence[str]
    """Prompts that no expert should answer."""
    probe: Probe
    """The engine, to calibrate with."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What identifies each expert's weights, by expert."""
    entries: Mapping[str, Mix] = field(default_factory=dict)
    """The library's named mixes."""
    artifacts: Path | None = None
    """The folder of what `tta router` trained for this library."""
    inline: bool = False
    """Whether the policy is to decide inside the pass that answers."""
    forms: Mapping[str, str] = field(default_factory=dict)
    """The form of each expert that is no low-rank one, by expert."""
    invocations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The tokens from which on some experts act, by expert."""
    pinned: Mapping[str, Tensor] | None = None
    """What the base reads in requests that pinned an expert, by expert: [requests, 2, hidden], bare
    and in the chat template. None where the server keeps none of them."""


class Options(BaseModel):
    """A policy's settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Policy(ABC):
    """One way to choose a mix for a prompt.

    To add one, write a subclass and give it a row in `router.registry.POLICIES`; README.md beside
    this file has an example.
    """

    Options: ClassVar[type[Options]]
    """The class of its options."""
    reads_features: ClassVar[bool] = False
    """Whether it asks the probe for features, so that the engine must tap an early layer."""
    forms: ClassVar[frozenset[str]] = frozenset(FORM_NAMES)
    """The forms of the experts that it can choose."""
    keep: float = 0.0
    """By how much another choice must lead, in units of scores, to end a conversation's mix."""

    @classmethod
    @abstractmethod
    async def create(cls, options: Any, context: Context) -> Self:
        """Build the policy, calibrated on the context alone.

        Args:
            options: An instance of `Options`.
            context: The library and the engine's probe.

        Raises:
            RouterError: The context lacks what the policy needs.
        """

    @abstractmethod
    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        """Decide for one prompt."""

    def should_move(self, before: Decision, now: Decision) -> bool:
        """Return whether a conversation has changed its topic, so that it needs another mix.

        It has if the choice is another than before, and leads over that by more than `keep`.
        """
        return now.choice != before.choice and now.lead_over(before.choice) > self.keep
