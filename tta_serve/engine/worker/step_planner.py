"""What each step's tokens use: which mix has which slot, and which experts the banks must hold."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from adapters.bank.token_gating import Gating
from adapters.coefficient import Coefficient
from tta_serve.engine import wire
from tta_serve.engine.wire import EARLIER, EarlierMix
from tta_serve.engine.worker.dense.dense_weights import Folded
from tta_serve.engine.worker.dense.folding import SlotMix
from tta_serve.engine.worker.inline_routing import StepPart
from tta_serve.engine.worker.loaded_model import LoadedModel
from tta_serve.engine.worker.residents import Residents
from tta_serve.engine.worker.slots import SlotTable
from tta_serve.engine.worker.step_state import Numbers


class _EarlierTokens(NamedTuple):
    """The tokens [first, last) of a step that run as an earlier mix."""

    first: int
    last: int
    mix: EarlierMix


class StepPlanner:
    """Gives the mixes of each step their slots, and tells the model what its tokens use.

    The table has `slots` rows for what requests run as, and `EARLIER` times as many for what tokens
    before did that are computed anew.

    Attributes:
        slots: The slot of each adapter id of vLLM.
    """

    def __init__(self, model: LoadedModel, residents: Residents, slots: int) -> None:
        """Start with empty slots.

        Args:
            model: The model whose steps are planned.
            residents: The experts that are ready.
            slots: How many mixes of requests a step can have.
        """
        self.slots = SlotTable[int](slots)
        self._earlier = SlotTable[Hashable](slots * EARLIER, first=slots + 1)
        self._model = model
        self._residents = residents
        self._columns: dict[int, frozenset[int]] = {}  # by slot, those of its mix's experts
        self._parts: Callable[[], Sequence[StepPart]] = tuple

        # What the last step was, and used.
        self._ids: tuple[tuple[int, ...], ...] = ()  # of each token, and each that is sampled from
        self._in_use: set[int] = set()  # columns of experts
        self._apart_in_use: set[int] = set()  # columns of experts of gated tokens
        self._dense: wire.DenseKey = ()  # what must be in the weights
        self._crosses = False  # whether tokens of it ran as another mix than those that follow
        self._only: SlotMix | None = None  # the mix of all tokens, if it may be in them too
        self._folded: Folded | None = None  # that mix, if it is

    def expect(self, parts: Callable[[], Sequence[StepPart]]) -> None:
        """Take, before a step, a way to learn where each request of it stands."""
        self._parts = parts

    def bind(self, requests: Iterable[LoRARequest]) -> bool:
        """Give the mixes of requests slots. Returns whether any of them is new."""
        by_id = {request.lora_int_id: request for request in requests}
        written = self.slots.bind(by_id)
        for adapter, slot in written:
            self._write(slot, by_id[adapter])
        return bool(written)

    def plan(self, requests: Collection[LoRARequest], mapping: LoRAMapping) -> None:
        """Get ready for a step.

        While one token after the other is decoded, a step uses what the one before did: then
        nothing is done anew.

        Args:
            requests: Those with an adapter in the step.
            mapping: The adapter id of each of the step's tokens, and of each that it samples from.
        """
        inline = self._model.inline
        new = self.bind(requests)
        pending = self._crosses or (inline is not None and inline.pending)
        begins = new or pending or (mapping.index_mapping, mapping.prompt_mapping) != self._ids
        if begins:
            self._begin(requests, mapping)
        self._fold(requests, mapping, begins=begins)
        self._model.use(self._in_use, self._apart_in_use)
        self._model.use_dense(self._dense, self._folded)

    def _fold(self, requests: Iterable[LoRARequest], mapping: LoRAMapping, *, begins: bool) -> None:
        """Leave slots idle in a step whose mix is in the weights."""
        before, self._folded = self._folded, self._model.decide_fold(self._only)
        if before and not self._folded and not begins:
            self._begin(requests, mapping)
        if self._folded and (begins or not before):
            self._model.state.begin(np.zeros(len(mapping.index_mapping), np.int64), active=False)
            if self._model.logits is not None:
                sampled = np.zeros(len(mapping.prompt_mapping), np.int64)
                self._model.logits.begin(sampled, warm_up=False)

    def _write(self, slot: int, request: LoRARequest) -> None:
        """Write the row of a request's mix, as far as it is known."""
        order = wire.read_order(request)
        assert self._model.gated or order.gating is None, "an engine that gates is started so"
        mix: Mapping[str, Coefficient] = order.mix or {}
        if order.before is not None:  # it holds unless the pass decides otherwise
            mix = order.before.mix
        if order.mix is None and self._model.inline is not None:
            decided = self._model.inline.find_decision(request.lora_int_id)
            if decided is not None:
                mix = decided.coefficients
        self._write_row(slot, mix, upper=order.upper, gating=order.gating)

    def _write_row(
        self,
        slot: int,
        mix: Mapping[str, Coefficient],
        *,
        upper: bool,
        gating: Gating | None,
    ) -> None:
        # Experts share a gated token by what their factors read of it: others have no part in it.
        by_column = {
            self._residents.column(digest): c
            for digest, c in mix.items()
            if gating is None or self._residents.is_low_rank(digest)
        }
        self._model.table.write(slot, by_column, upper=upper, gating=gating)

    def _begin(self, requests: Iterable[LoRARequest], mapping: LoRAMapping) -> None:
        """Start a step whose tokens, or whose slots, are not those of the step before."""
        # Which slot has each token?
        by_id = {request.lora_int_id: request for request in requests}
        slots = self._find_slots(mapping.index_mapping)
        ids = dict.fromkeys(mapping.index_mapping)
        present = [by_id[i] for i in sorted(ids) if i in by_id]
        self._ids = mapping.index_mapping, mapping.prompt_mapping

        # Tell those that read tokens.
        self._model.probes.begin(present, self.slots)
        parts = self._parts()
        self._parts = tuple
        if self._model.inline is not None:
            self._model.inline.begin(parts, self.slots, len(slots))

        # Give tokens before a request's own mix what they are to run as.
        self._crosses = False
        for part in parts:
            self._hide(part, slots)
        earlier = [tokens for part in parts for tokens in _find_earlier(part)]
        self._bind_earlier(earlier)
        for tokens in earlier:
            slots[tokens.first : tokens.last] = self._earlier.slot(tokens.mix.row)

        # Which dense mix do all of them need? That of the base is the empty one.
        needed = {wire.read_order(request).dense for request in present}
        needed |= {()} if 0 in ids or not ids else set()
        assert len(needed) == 1, "a step runs requests of one dense mix"
        (self._dense,) = needed

        # Is there one mix of all of them that may be there too?
        self._only = None
        if len(present) == 1 and 0 not in ids:
            order = wire.read_order(present[0])
            if order._replace(mix=None, dense=()) == wire.WorkerOrder(mix=None):
                self._only = order.mix or None

        # Which experts may be used, and by which kind of bank?
        self._in_use = set()
        self._apart_in_use = set()
        for request in present:
            slot = self.slots.slot(request.lora_int_id)
            gated = wire.read_order(request).gating is not None
            self._use(slot, self._find_experts(request), gated=gated)
        for tokens in earlier:
            slot = self._earlier.slot(tokens.mix.row)
            self._use(slot, tokens.mix.mix, gated=tokens.mix.gating is not None)

        # A warm-up of vLLM uses no expert, and is to cost what a step with experts does.
        warm_up = any(_is_warm_up(request) for request in present)
        self._model.state.begin(slots, active=bool(self._in_use) or warm_up)
        if self._model.logits is not None:
            sampled = self._find_slots(mapping.prompt_mapping)
            self._model.logits.begin(sampled, warm_up=warm_up)

    def _hide(self, part: StepPart, slots: Numbers) -> None:
        """Let tokens of a part from before its mix is used run as the base."""
        order = wire.read_order(part.adapter)
        since = order.used_from
        if order.mix is None and self._model.inline is not None:
            decided = self._model.inline.find_decision(part.adapter.lora_int_id)
            since = part.end if decided is None else decided.since
        hidden = min(max(since - part.start, 0), part.tokens)
        slots[part.first : part.first + hidden] = 0
        self._crosses |= hidden > 0

    def _bind_earlier(self, earlier: Collection[_EarlierTokens]) -> None:
        """Give earlier mixes slots, and write those that are new."""
        by_key = {tokens.mix.row: tokens.mix for tokens in earlier}
        for key, slot in self._earlier.bind(by_key):
            mix = by_key[key]
            self._write_row(slot, mix.mix, upper=mix.upper, gating=mix.gating)

    def _use(self, slot: int, experts: Iterable[str], *, gated: bool) -> None:
        """Note which experts' columns a slot of the step uses."""
        found = map(self._residents.find_column, experts)
        columns = self._columns[slot] = frozenset(c for c in found if c is not None)
        if self._model.sparse and gated:
            self._apart_in_use.update(columns)
        else:
            self._in_use.update(columns)

    def _find_slots(self, adapters: Sequence[int]) -> Numbers:
        """Return the slot of each adapter id of a long list with few different ones."""
        ids, inverse = np.unique(np.asarray(adapters, dtype=np.int64), return_inverse=True)
        return np.array([self.slots.slot(int(i)) for i in ids], dtype=np.int64)[inverse]

    def _find_experts(self, request: LoRARequest) -> set[str]:
        """Return the digests of the experts that a request's own tokens use, or may turn out to."""
        order = wire.read_order(request)
        if self._model.inline is None:
            return set(order.mix or ())
        return self._model.inline.find_experts(request)

    def find_experts(self, request: LoRARequest) -> set[str]:
        """Return the digests of the experts that any of a request's tokens may use."""
        order = wire.read_order(request)
        dense = {digest for digest, _ in order.dense}
        earlier = {digest for part in order.earlier for digest in part.mix}
        return dense | earlier | self._find_experts(request)

    def forget_expert(self, column: int) -> None:
        """Take the slots away from mixes that used an expert that is gone."""
        self._ids = ()
        for adapter in self.slots.ids():
            if column in self._columns[self.slots.slot(adapter)]:
                self.slots.remove(adapter)
        for key in self._earlier.ids():
            if column in self._columns[self._earlier.slot(key)]:
                self._earlier.remove(key)


def _find_earlier(part: StepPart) -> Iterator[_EarlierTokens]:
    """Yield the tokens of a part that run as earlier mixes."""
    order = wire.read_order(part.adapter)
    starts = [mix.start for mix in order.earlier] + [order.acts_from]
    for mix, (start, end) in zip(order.earlier, pairwise(starts), strict=True):
        first = max(start, mix.since, part.start)
        last = min(end, part.end)
        if first < last and mix.mix:
            offset = part.first - part.start
            yield _EarlierTokens(first + offset, last + offset, mix)


def _is_warm_up(request: LoRARequest) -> bool:
    return bool(request.lora_name.startswith("warmup_"))
