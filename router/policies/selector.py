"""What the policies share that say which experts fit a prompt; others ask them for a shortlist."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from adapters.mix import Mix, MixRules
from router.decision import NO_TEXT, Decision, Prompt
from router.policy import Policy
from router.probing import Probe
from router.scoring.blend import blend, find_rounding
from router.scoring.heads import Head


@dataclass(frozen=True)
class Selection:
    """Which experts fit a prompt, and in which proportion."""

    weights: Mapping[str, float]
    """By expert, the best first, positive, of sum 1; empty if no expert fits."""
    scores: Mapping[str, float]
    """Of every expert, in the selector's own units."""
    floor: float
    """The score that an expert must reach."""
    reason: str
    """Why, in a few words."""
    then: tuple[str, ...] = ()
    """The experts that are to answer alone after these, each a segment of the answer."""


class Selector(Policy):
    """A policy that says which experts fit a prompt and in which proportion."""

    def __init__(self, rules: MixRules) -> None:
        self.rules = rules

    @abstractmethod
    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        """Select the experts that fit a prompt."""

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if not prompt.user_turn.strip():
            return NO_TEXT
        return self.decide(await self.select(prompt, probe))

    def decide(self, selection: Selection) -> Decision:
        """Make a decision of a selection as it stands."""
        mix = blend(selection.weights, self.rules)
        return Decision(
            mix=mix,
            scores=selection.scores,
            abstained=not selection.weights,
            reason=selection.reason,
            floor=selection.floor,
            then=self.list_later_mixes(selection),
            rounding=find_rounding(selection.weights, mix),
        )

    def list_later_mixes(self, selection: Selection) -> tuple[Mix, ...]:
        """Return the mixes that answer after the selection's own."""
        return tuple(blend({name: 1.0}, self.rules) for name in selection.then)


class InlineSelector(Selector):
    """A selector that decides by linear heads, so that the engine can do it inside a pass."""

    def __init__(self, rules: MixRules, *, inline: bool) -> None:
        """Keep how prompts are read.

        Args:
            rules: Which experts there are, and which mixes of them are allowed.
            inline: Whether the engine decides; a probe then reads prompts as the engine does, in
                the chat template.
        """
        super().__init__(rules)
        self._inline = inline

    async def read_features(self, prompt: Prompt, probe: Probe) -> Tensor:
        """Read what the heads decide by, [hidden], with a probe."""
        return await probe.features(prompt.user_turn, chat=self._inline and prompt.chat)

    @property
    def makes_segments(self) -> bool:
        """Whether several experts may answer, one after the other."""
        return False

    @abstractmethod
    def make_heads(self) -> tuple[Head, ...]:
        """Return the heads, in the order in which `router.scoring.heads.choose` tries them.

        Raises:
            RouterError: What was trained is not linear.
        """

    @abstractmethod
    def judge(
        self, head: int, scores: Mapping[str, float], floor: float, several: float = -math.inf
    ) -> Selection:
        """Return the selection that a head's scores mean.

        Args:
            head: The number of the head that decided.
            scores: Its scores by expert.
            floor: Its score of "none of them".
            several: Its logit that the request wants several experts.
        """
