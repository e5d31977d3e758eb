"""What each step's tokens use: which mix has which slot, and which experts the banks must hold."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient
from tta_serve.engine import wire
from tta_serve.engine.worker.inline_routing import StepPart
from tta_serve.engine.worker.loaded_model import LoadedModel
from tta_serve.engine.worker.residents import Residents
from tta_serve.engine.worker.slots import SlotTable
from tta_serve.engine.worker.step_state import Numbers


class StepPlanner:
    """Gives the mixes of each step their slots, and tells the model what its tokens use.

    Attributes:
        slots: The slot of each adapter id of vLLM.
    """

    def __init__(self, model: LoadedModel, residents: Residents, slots: int) -> None:
        """Start with empty slots.

        Args:
            model: The model whose steps are planned.
            residents: The experts that are ready.
            slots: How many mixes a step can have.
        """
        self.slots = SlotTable[int](slots)
        self._model = model
        self._residents = residents
        self._columns: dict[int, frozenset[int]] = {}  # by slot, those of its mix's experts
        self._parts: Callable[[], Sequence[StepPart]] = tuple

        # What the last step was, and used.
        self._ids: tuple[tuple[int, ...], ...] = ()  # of each token, and each that is sampled from
        self._in_use: set[int] = set()  # columns of experts
        self._apart_in_use: set[int] = set()  # columns of experts of gated tokens

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
        pending = inline is not None and inline.pending
        if new or pending or (mapping.index_mapping, mapping.prompt_mapping) != self._ids:
            self._begin(requests, mapping)
        self._model.use(self._in_use, self._apart_in_use)

    def _write(self, slot: int, request: LoRARequest) -> None:
        """Write the row of a request's mix, as far as it is known."""
        order = wire.read_order(request)
        assert self._model.gated or order.gating is None, "an engine that gates is started so"
        mix: Mapping[str, Coefficient] = order.mix or {}
        if order.mix is None and self._model.inline is not None:
            decided = self._model.inline.find_decision(request.lora_int_id)
            if decided is not None:
                mix = decided.coefficients
        by_column = {self._residents.column(digest): c for digest, c in mix.items()}
        self._model.table.write(slot, by_column, upper=order.upper, gating=order.gating)

    def _begin(self, requests: Iterable[LoRARequest], mapping: LoRAMapping) -> None:
        """Start a step whose tokens, or whose slots, are not those of the step before."""
        # Which slot has each token?
        by_id = {request.lora_int_id: request for request in requests}
        slots = self._find_slots(mapping.index_mapping)
        ids = dict.fromkeys(mapping.index_mapping)
        present = [by_id[i] for i in sorted(ids) if i in by_id]
        self._ids = mapping.index_mapping, mapping.prompt_mapping

        # Tell those that read tokens; routing takes tokens away from slots that are decided later.
        self._model.probes.begin(present, self.slots)
        if self._model.inline is not None:
            self._model.inline.begin(self._parts(), self.slots, slots)
        self._parts = tuple

        # Which experts may be used, and by which kind of bank?
        self._in_use = set()
        self._apart_in_use = set()
        for request in present:
            columns = self._find_columns(request)
            self._columns[self.slots.slot(request.lora_int_id)] = columns
            if self._model.sparse and wire.read_order(request).gating:
                self._apart_in_use.update(columns)
            else:
                self._in_use.update(columns)

        # A warm-up of vLLM uses no expert, and is to cost what a step with experts does.
        warm_up = any(_is_warm_up(request) for request in present)
        self._model.state.begin(slots, active=bool(self._in_use) or warm_up)
        if self._model.logits is not None:
            sampled = self._find_slots(mapping.prompt_mapping)
            self._model.logits.begin(sampled, warm_up=warm_up)

    def _find_slots(self, adapters: Sequence[int]) -> Numbers:
        """Return the slot of each adapter id of a long list with few different ones."""
        ids, inverse = np.unique(np.asarray(adapters, dtype=np.int64), return_inverse=True)
        return np.array([self.slots.slot(int(i)) for i in ids], dtype=np.int64)[inverse]

    def _find_columns(self, request: LoRARequest) -> frozenset[int]:
        columns = map(self._residents.find_column, self.find_experts(request))
        return frozenset(column for column in columns if column is not None)

    def find_experts(self, request: LoRARequest) -> set[str]:
        """Return the digests of the experts that a request uses, or may turn out to use."""
        if self._model.inline is None:
            return set(wire.read_order(request).mix or ())
        return self._model.inline.find_experts(request)

    def forget_expert(self, column: int) -> None:
        """Take the slots away from mixes that used an expert that is gone."""
        self._ids = ()
        for adapter in self.slots.ids():
            if column in self._columns[self.slots.slot(adapter)]:
                self.slots.remove(adapter)


def _is_warm_up(request: LoRARequest) -> bool:
    return bool(request.lora_name.startswith("warmup_"))
