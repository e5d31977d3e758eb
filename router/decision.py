"""The two ends of routing: the prompt that a policy reads, and the decision that it makes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from adapters.bank.token_gating import Gating
from adapters.mix import Mix

ActsFrom = Literal["start", "user_turn", "last_user_turn", "answer"]
"""Where a mix begins to act: at the first token, at the first user turn, at the last one, or where
the answer begins."""


@dataclass(frozen=True)
class Prompt:
    """What a policy may read of a request."""

    user_turn: str
    """The text of the last user turn, or the prompt of a completion."""
    chat: bool = True
    """Whether the base's chat template goes around the text."""
    tenant: str | None = None
    """Whose request it is; None where that is not known."""
    preference: Mapping[str, float] | None = None
    """How much each task matters to the request; only `pareto` reads it."""
    in_prompt: bool = True
    """Whether the text stands in the prompt as it is, where the pass that answers can read it."""


@dataclass(frozen=True)
class Decision:
    """A policy's answer to one prompt: the mix to use, and the scores that led to it."""

    mix: Mix
    """How much of each expert answers."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By expert, in the policy's own units; more is better."""
    abstained: bool = False
    """Whether no expert fits, so that the base answers, or what all experts share."""
    reason: str = ""
    """Why, in a few words for the reader of a response."""
    floor: float = float("-inf")
    """The score that an expert must reach; -inf where none can be too low."""
    gating: Gating | None = None
    """How the mix's experts share each token in each layer, instead of by their coefficients."""
    then: tuple[Mix, ...] = ()
    """The mixes that answer after it, one after the other, each a segment of the answer."""
    batch: int = 1
    """How many requests of one tenant were decided together, all with this mix."""
    rounding: float | None = None
    """How far the grid moved the coefficient that it moved most; None where none was moved."""

    def with_gating(self, gating: Gating | None) -> "Decision":
        """Return this decision with the experts of its mix as candidates for in-layer gating.

        Each of them gets the coefficient 1, so that equal candidates are equal mixes, and they
        answer in one segment. A decision for the base stays as it is.
        """
        if gating is None or self.mix.is_base:
            return self
        candidates = Mix.of(dict.fromkeys(self.mix.as_dict(), 1.0))
        return replace(self, mix=candidates, gating=gating, then=())

    @property
    def choice(self) -> str | None:
        """The expert with the highest score; None for the base."""
        if self.abstained or not self.scores:
            return None
        return max(self.scores, key=lambda name: self.scores[name])

    def lead_over(self, other: str | None) -> float:
        """Return how far the choice's score is ahead of another's.

        The score of the base (None) is the floor, that of an expert without a score -inf.
        """
        return self._score_of(self.choice) - self._score_of(other)

    def _score_of(self, name: str | None) -> float:
        return self.floor if name is None else self.scores.get(name, float("-inf"))


NO_TEXT = Decision(Mix(), abstained=True, reason="no user text to route by")
