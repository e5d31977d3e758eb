"""What every policy takes and gives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, PlainValidator
from torch import Tensor

from adapters.coefficient import Coefficient, from_json
from adapters.gating import Gating
from adapters.mix import Mix, MixRules
from router.blend import blend
from router.inline import Head

CoefficientField = Annotated[Coefficient, PlainValidator(from_json)]
EVERYDAY = Path(str(files("router") / "everyday.txt"))  # prompts that no expert should answer, where a library has none


class RouterError(ValueError):
    """A policy is configured wrongly; the message says what would have worked."""


@dataclass(frozen=True)
class Prompt:
    """What a policy may read of a request.

    user_turn: the text of the last user turn, or the prompt of a completion   chat: whether the base's chat template goes
    around it   tenant: whose request it is, None where that is not known   preference: what a request wants of `pareto`
    in_prompt: whether it stands in the prompt, where the pass that answers can read it
    """

    user_turn: str
    chat: bool = True
    tenant: str | None = None
    preference: Mapping[str, float] | None = None
    in_prompt: bool = True


@dataclass(frozen=True)
class Decision:
    """A policy's answer.

    scores: by expert, in the policy's own units   floor: the score that an expert must reach, -inf where none can be too low
    abstained: the base answers because no expert fits   gating: how the mix's experts share each token in each layer, instead
    of by their coefficients
    """

    mix: Mix
    scores: Mapping[str, float] = field(default_factory=dict)
    abstained: bool = False
    reason: str = ""
    floor: float = float("-inf")
    gating: Gating | None = None

    def gated(self, gating: Gating | None) -> "Decision":
        """With the experts of its mix as candidates, each with coefficient 1, so that equal candidates are equal mixes."""
        if gating is None or self.mix.is_base:
            return self
        return replace(self, mix=Mix.of(dict.fromkeys(self.mix.as_dict(), 1.0)), gating=gating)

    @property
    def choice(self) -> str | None:
        """The expert with the highest score; None for the base."""
        return None if self.abstained or not self.scores else max(self.scores, key=lambda name: self.scores[name])

    def lead(self, other: str | None) -> float:
        """How far the choice's score is ahead of another's. The base's is the floor; an expert without a score has none."""
        return self._score(self.choice) - self._score(other)

    def _score(self, name: str | None) -> float:
        return self.floor if name is None else self.scores.get(name, float("-inf"))


NO_TEXT = Decision(Mix(), abstained=True, reason="no user text to route by")


@dataclass(frozen=True)
class Window:
    """Which tokens a comparison looks at: the last ones of the prompt, and so many that the base adds to it greedily."""

    last: int = 64
    draft: int = 0


@dataclass(frozen=True)
class Outputs:
    """What the base (row 0) and candidate mixes (rows 1 ...) predict over a window of the same tokens.

    js: [candidates], mean over positions of JS(p_0, p_k), nats, in [0, ln 2]
    entropy: [1 + candidates], mean over positions of H(p_k), nats
    nll: [1 + candidates], mean of -log p_k(x_(t+1) | x_(<=t)), nats, over the positions whose next token is known
    positions: how many
    """

    js: Tensor
    entropy: Tensor
    nll: Tensor
    positions: int


@dataclass(frozen=True)
class Activations:
    """How much of the base's own states lies in what each expert reads, at every site that experts watch.

    With B_k A_k = U S V^T (thin SVD) and x the input of a site, over the tokens of a text:

    arrow: mean |v_1 . x|   spectr: mean ||V^T x||   norm: ||S V^T x|| at the last token, which is ||B_k A_k x||
    inputs: mean ||x||   residual: mean ||x - V V^T x||

    experts, sites: names   arrow, spectr, norm, residual: [experts, sites], NaN where an expert leaves a site alone
    inputs: [sites]
    """

    experts: tuple[str, ...]
    sites: tuple[str, ...]
    arrow: Tensor
    spectr: Tensor
    norm: Tensor
    residual: Tensor
    inputs: Tensor


class Probe(Protocol):
    """What a policy may ask of the engine. Each raises an error of the engine's if the pass fails."""

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        """The mean over the text's tokens of the input of the base's tapped early layer. Returns [hidden], float32.

        chat: with the base's chat template around the text, as a user turn is read that routes itself
        """
        ...

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        """Run the prompt through the base and every candidate, as rows of one batch."""
        ...

    async def activations(self, text: str) -> Activations:
        """Run a text through the base and score all experts on the way."""
        ...


@dataclass(frozen=True)
class Context:
    """What a policy is built from.

    examples: prompts by expert   everyday: prompts that no expert should answer   digests: of the experts
    entries: named mixes   artifacts: the folder of what `tta router` trained for this library
    inline: whether the policy is to decide inside the pass that answers
    """

    rules: MixRules
    examples: Mapping[str, Sequence[str]]
    everyday: Sequence[str]
    probe: Probe
    digests: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, Mix] = field(default_factory=dict)
    artifacts: Path | None = None
    inline: bool = False


class Options(BaseModel):
    """A policy's settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Policy(ABC):
    """One way to choose a mix. To add one: subclass, and a row in `router.table.POLICIES`."""

    Options: ClassVar[type[Options]]
    reads_features: ClassVar[bool] = False  # whether it asks for features, so that the engine must have a tap
    keep: float = 0.0  # what another choice must be ahead by, in units of scores, to end a conversation's mix

    @classmethod
    @abstractmethod
    async def create(cls, options: Any, context: Context) -> Self:
        """Build the policy, calibrated on the context alone. Raises RouterError."""

    @abstractmethod
    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        """Decide for one prompt."""

    def moved(self, before: Decision, now: Decision) -> bool:
        """Whether a conversation has changed its topic: another choice than before, ahead of it by more than `keep`."""
        return now.choice != before.choice and now.lead(before.choice) > self.keep


@dataclass(frozen=True)
class Selection:
    """A selector's answer. weights: by expert, the best first, positive, of sum 1; empty if no expert fits"""

    weights: Mapping[str, float]
    scores: Mapping[str, float]
    floor: float
    reason: str


class Selector(Policy):
    """A policy that says which experts fit and in which proportion; others may ask it for a shortlist."""

    def __init__(self, rules: MixRules) -> None:
        self.rules = rules

    @abstractmethod
    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        """The experts that fit a prompt."""

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if not prompt.user_turn.strip():
            return NO_TEXT
        return self.decided(await self.select(prompt, probe))

    def decided(self, selection: Selection) -> Decision:
        """The selection as it stands, as a decision."""
        mix = blend(selection.weights, self.rules)
        return Decision(mix, selection.scores, not selection.weights, selection.reason, selection.floor)


class InlineSelector(Selector):
    """A selector whose decision is a function of linear heads' scores, so that the engine can make it inside a pass."""

    def __init__(self, rules: MixRules, *, inline: bool) -> None:
        """inline: whether the engine does, so that a prompt is read as it is then: in the chat template"""
        super().__init__(rules)
        self._inline = inline

    async def features(self, prompt: Prompt, probe: Probe) -> Tensor:
        """What it decides by, read by a probe. Returns [hidden]."""
        return await probe.features(prompt.user_turn, chat=self._inline and prompt.chat)

    @abstractmethod
    def heads(self) -> tuple[Head, ...]:
        """The heads, in the order of `router.inline.choose`. Raises RouterError if what was trained is not linear."""

    @abstractmethod
    def judged(self, head: int, scores: Mapping[str, float], floor: float) -> Selection:
        """The selection that scores of one of the heads mean. scores: by expert"""
