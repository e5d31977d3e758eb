"""How one prompt runs through the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm.lora.request import LoRARequest

from adapters.mix import Mix
from router.decision import ActsFrom
from tta_serve.engine import wire
from tta_serve.engine.client.placement import PromptHistory, PromptPlacer, UserTurns
from tta_serve.engine.wire import EarlierMix
from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.routing.decision import describe_undecided
from tta_serve.serving.routing.inline_turn import InlineTurn
from tta_serve.serving.routing.invoked_mix import InvokedMix


@dataclass(frozen=True)
class DecidedTurn:
    """A turn whose mix is decided, and which acts from one of its tokens."""

    adapter: LoRARequest | None
    """The mix as the engine takes it, None for the base."""
    info: MergeInfo
    """What the answer says of it."""
    acts_from: ActsFrom
    history: PromptHistory | None = None
    """What the turns before ran as."""
    keeps: bool = False
    """Whether the mix is that of the turn before."""
    remember: Callable[[PromptHistory], None] = lambda _: None
    """Takes what this one ran as."""
    invoked: InvokedMix | None = None
    """The mix, if some of its experts act only from their invocation on."""
    then: tuple[Mix, ...] = ()
    """The mixes that answer after it."""

    @property
    def may_go_on(self) -> bool:
        """Whether other mixes may answer after it."""
        return bool(self.then)

    def place(
        self, placer: PromptPlacer, tokens: Sequence[int], turns: UserTurns
    ) -> LoRARequest | None:
        """Return what the engine runs a prompt as, None for the base."""
        if self.adapter is not None and wire.read_order(self.adapter).dense:
            self.info.acts_from = "start"  # the weights are those of all tokens
            return self.adapter
        if self.invoked is not None:
            return self._place_invoked(self.invoked, placer, tokens, turns)

        # A mix that is kept acts from where it began.
        before = self.history
        if self.keeps and before is not None and before.parts and before.continues_in(tokens):
            self.info.acts_from = self.acts_from
            return self._run(tokens, before.parts)

        if before is None and self.acts_from == "start":
            turns = UserTurns()  # none has to be looked for
        placed = placer.place(tokens, self.acts_from, turns, before)
        self.info.acts_from = placed.acts_from
        adapter = self.adapter
        if adapter is None and not placed.earlier:
            self.remember(PromptHistory.of(tokens, ()))
            return None
        adapter = adapter or wire.make_base_request()
        mix = wire.read_order(adapter).mix or {}
        own = EarlierMix(placed.start, adapter.lora_name, mix, gating=self.info.gating)
        return self._run(tokens, (*placed.earlier, own))

    def _place_invoked(
        self, mix: InvokedMix, placer: PromptPlacer, tokens: Sequence[int], turns: UserTurns
    ) -> LoRARequest | None:
        """Place the experts of a mix each where its last invocation is.

        That moves with every turn, so nothing is taken over from the turns before.
        """
        placed = placer.place(tokens, self.acts_from, turns)
        starts = mix.find_starts(tokens)
        *before, own = mix.split(starts, placed.start)
        self.info.acts_from = placed.acts_from
        self.info.invoked_from = starts
        if not before and own.adapter is None:
            return None
        earlier = [
            EarlierMix(
                part.start, adapter.lora_name, wire.read_order(adapter).mix or {}, gating=gating
            )
            for part in before
            for adapter in [part.adapter or wire.make_base_request()]
            for gating in [self.info.gating if part.adapter else None]
        ]
        return wire.acting_from(own.adapter or wire.make_base_request(), own.start, earlier)

    def _run(self, tokens: Sequence[int], parts: Sequence[EarlierMix]) -> LoRARequest:
        """Return what runs a prompt as the last of these parts, after the others."""
        self.remember(PromptHistory.of(tokens, parts))
        *earlier, own = parts
        return wire.acting_from(self.adapter or wire.make_base_request(), own.start, earlier)


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
