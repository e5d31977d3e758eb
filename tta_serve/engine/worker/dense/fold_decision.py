"""When a low-rank mix that all requests use is worth writing into the weights."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Mix = TypeVar("Mix", bound=Hashable)


class FoldDecision(Generic[Mix]):
    """Decides which mix is folded, as one decides between renting and buying.

    A mix is folded once its slots have cost, over consecutive steps that used it and nothing else,
    as much as writing it and writing it back will: whatever comes then, no more than twice the
    least possible is spent. It stays until a step uses anything else. That is the merged mode of
    dLoRA (Wu et al., OSDI 2024), with its hysteresis.

    Attributes:
        folded: The mix that is folded, None if none is.
    """

    def __init__(self) -> None:
        """Start with nothing folded."""
        self.folded: Mix | None = None
        self._only: Mix | None = None
        self._spent_s = 0.0

    def decide(self, only: Mix | None, cost_s: float) -> Mix | None:
        """Return the mix to have folded in a step, None for none.

        Args:
            only: The mix that all of the step's tokens use, None if they use several, or none that
                can be folded.
            cost_s: What it takes to write weights and to write them back.
        """
        if only != self._only:
            self._only = only
            self._spent_s = 0.0
            self.folded = None
        if only is not None and self._spent_s >= cost_s:
            self.folded = only
        return self.folded

    def note(self, seconds: float) -> None:
        """Take note of what the slots have cost in the last step."""
        self._spent_s += seconds

    def refuse(self) -> None:
        """Take note that the mix cannot be folded; it is asked for again when another came."""
        self.folded = None
        self._spent_s = float("-inf")
