"""How one prompt runs through the engine."""

from dataclasses import dataclass

from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.routing.decided_turn import DecidedTurn
from tta_serve.serving.routing.decision import describe_undecided
from tta_serve.serving.routing.inline_turn import InlineTurn


@dataclass(frozen=True)
class RequestRoute:
    """A prompt's way through the engine."""

    wish: Wish
    turn: DecidedTurn | InlineTurn
    """With a mix that is decided, or that its pass decides."""

    @property
    def info(self) -> MergeInfo | None:
        """What was decided, None as long as nothing is."""
        return self.turn.info

    def merge_info(self) -> MergeInfo:
        """Return what the answer says."""
        return self.info or describe_undecided(self.wish)
