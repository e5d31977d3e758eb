"""How one prompt runs through the engine."""

from dataclasses import dataclass

from vllm.lora.request import LoRARequest

from tta_serve.engine.client.engine_client import UndecidedRequest
from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.routing.decision import describe_undecided
from tta_serve.serving.routing.inline_turn import InlineTurn


@dataclass(frozen=True)
class RequestRoute:
    """A prompt's way through the engine, with a mix that is decided or that its pass decides."""

    wish: Wish
    adapter: LoRARequest | UndecidedRequest | None
    """What the engine runs it with, None for the base."""
    decided: MergeInfo | None = None
    """What was decided before the pass."""
    turn: InlineTurn | None = None
    """Where the pass leaves its decision, if it is to decide."""

    @property
    def info(self) -> MergeInfo | None:
        """What was decided, None as long as nothing is."""
        return self.turn.info if self.turn else self.decided

    def merge_info(self) -> MergeInfo:
        """Return what the answer says."""
        return self.info or describe_undecided(self.wish)
