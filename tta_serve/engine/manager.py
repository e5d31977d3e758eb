"""The worker's side: in place of vLLM's LoRA manager, one that keeps rows of coefficients instead of copies of weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient
from adapters.errors import ExpertError
from adapters.layer_gates import LAYER_GATES, read_gates
from adapters.library import Library
from router.policy import RouterError
from tta_serve.engine import wire
from tta_serve.engine.attach import Placed, find_sites, place, place_gated
from tta_serve.engine.banks import Banks
from tta_serve.engine.inline import Inline, Part
from tta_serve.engine.mixture import MixtureMethod
from tta_serve.engine.options import BankOptions, Capacity
from tta_serve.engine.probes import Probes
from tta_serve.engine.residents import Reader, Residents
from tta_serve.engine.slots import SlotTable
from tta_serve.engine.sparse import narrowed
from tta_serve.engine.step import StepState
from tta_serve.engine.wire import Said

logger = init_logger(f"vllm.{__name__}")


class MixtureManager:
    """Answers every call that vLLM's model runners make to `LRUCacheWorkerLoRAManager`.

    A "LoRA" of vLLM is a mix here: activating one writes a row of K numbers.
    """

    is_enabled = True

    def __init__(self, vllm_config: VllmConfig, device: torch.device, embedding_modules: Any, options: BankOptions) -> None:
        assert vllm_config.lora_config is not None
        self._options = options
        self._residents = Residents(options.capacity)
        self._reader = Reader()
        self._slots = SlotTable[int](vllm_config.lora_config.max_loras)
        self._columns: dict[int, frozenset[int]] = {}  # of the experts in the mix of each slot
        self._step: tuple[int, ...] = ()  # the id of each token of the last step
        self._in_use: tuple[set[int], set[int]] = (
            set(),
            set(),
        )  # columns of the experts that it used, and that gated tokens did
        self._parts: Callable[[], Sequence[Part]] = tuple
        self._max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self._device = device

    def create_lora_manager(self, model: nn.Module, vllm_config: VllmConfig) -> nn.Module:
        """Load the experts and take a seat at every linear layer of `model`, which stays the same object."""
        sites = find_sites(model)
        places = sorted({site.place for site in sites.values()})
        traced = not vllm_config.model_config.enforce_eager
        captured = self._device.type != "cpu" and traced
        columns = self._options.capacity.experts
        upper = self._options.tap_layer or 0
        dtype = vllm_config.model_config.dtype
        self._sparse = self._device.type == "cpu" and dtype == torch.float32
        state = StepState(
            self._slots.capacity,
            places,
            columns,
            self._max_tokens,
            self._device,
            captured=captured,
            upper=upper,
            gated=self._options.gated,
            sparse=self._sparse,
        )
        self._probes = Probes(model, sites, state, vllm_config, self._options.tap_layer)
        self._banks = Banks(sites, self._device, sparse=self._sparse, fixed=captured)
        self._apart = Banks(sites, self._device, sparse=False, fixed=False)  # for gated tokens, where the others' are sparse
        keep = narrowed if self._sparse else lambda factor: factor.to(dtype)
        gates = read_gates(Path(self._options.library) / LAYER_GATES) if self._options.trained else {}
        placed = partial(place_gated, apart=self._sparse, gates=gates) if self._options.gated else place
        self._place = lambda expert: placed(expert, model, sites, keep)
        for name, digest in self._options.experts:
            self._add(digest, self._read(name, digest))
        self._state = state
        self._methods: dict[str, MixtureMethod] = {}
        for name, site in sites.items():
            method = MixtureMethod(site, state, self._probes.at(name), traced=traced)
            self._methods[name] = site.layer.quant_method = method
        self._use([self._residents.column(digest) for _, digest in self._options.experts], ())
        logger.info("mixture slots: %s, %d slots, %d bytes of banks", self.used(), self._slots.capacity, self.bank_bytes)
        return model

    def _read(self, name: str, digest: str) -> Placed:
        """This rank's share of an expert of the library. Raises ExpertError."""
        expert = Library.open(self._options.library).expert(name)
        if expert.digest != digest:
            raise ExpertError(f"expert {name!r} changed in the library while it was being loaded; load it again")
        return self._place(expert)

    def _add(self, digest: str, expert: Placed) -> None:
        column = self._residents.add(digest, expert)
        self._banks.add(column, expert.shares, expert.gates)
        self._apart.add(column, expert.gated, expert.gates)
        self._probes.watch.add(digest, expert.reads)
        self._remap()

    # Experts come and go between steps; whoever calls these keeps requests away from experts that are not there.

    def prepare(self, name: str, digest: str) -> None:
        """Begin to read an expert of the library, beside the running steps."""
        if self._state.captured:
            raise ExpertError(
                "this engine captured its CUDA graphs with the experts it has; start with enforce_eager to load others"
            )
        self._reader.start(digest, lambda: self._read(name, digest))

    def prepared(self, digest: str) -> bool:
        """Whether `commit` would not wait."""
        return digest in self._residents or self._reader.done(digest)

    def commit(self, digest: str) -> None:
        """Make an expert that was prepared usable from the next step on. Raises ExpertError as the reading did."""
        if digest not in self._residents:
            self._add(digest, self._reader.take(digest))

    def discard(self, digest: str) -> None:
        """Undo `prepare`."""
        self._reader.forget(digest)

    def unload(self, digest: str, running: Iterable[LoRARequest]) -> bool:
        """Forget an expert, unless one of the running requests uses it. Returns whether it is gone."""
        if digest not in self._residents:
            return True
        if any(digest in self._digests(request) for request in running):
            return False
        column = self._residents.remove(digest)
        self._step = ()
        for request_id in self._slots.ids():
            if column in self._columns[self._slots.slot(request_id)]:
                self._slots.remove(request_id)
        self._state.clear(column)
        self._banks.remove(column)
        self._apart.remove(column)
        self._probes.watch.remove(digest)
        self._remap()
        return True

    def install(self, policy: str, settings: str, data: bytes) -> None:
        """Let requests be decided by a policy. Raises RouterError if it does not fit."""
        if self.inline is None:
            raise RouterError("this engine reads no features; start it with a tap layer")
        self.inline.table.install(policy, settings, data, self._column)

    @property
    def inline(self) -> Inline | None:
        return self._probes.inline

    def _remap(self) -> None:
        if self.inline is not None:
            self.inline.table.remap(self._column)

    def _column(self, digest: str) -> int | None:
        return self._residents.column(digest) if digest in self._residents else None

    def used(self) -> Capacity:
        """How much of the capacity is taken."""
        return self._residents.used()

    def _use(self, columns: Iterable[int], apart: Iterable[int]) -> None:
        """apart: of the experts of tokens that are apart"""
        if any([self._banks.use(columns), self._apart.use(apart)]):
            self._state.forget_banks(self._banks.most_rows)
            for name, method in self._methods.items():
                method.bank, method.apart = self._banks.by_site.get(name), self._apart.by_site.get(name)

    def expect(self, parts: Callable[[], Sequence[Part]]) -> None:
        """Called before `set_active_adapters`, with a way to learn where each request stands."""
        self._parts = parts

    def set_active_adapters(self, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        """Called once a step, before the forward pass, with the requests in the batch and each token's adapter id.

        While one token after the other is decoded, a step uses what the one before did: then nothing is done anew.
        """
        by_id = {r.lora_int_id: r for r in requests}
        written = self._slots.bind(by_id)
        for request_id, slot in written:
            self._write(slot, by_id[request_id])
        if mapping is None:
            return
        pending = self.inline is not None and self.inline.pending
        if written or pending or mapping.index_mapping != self._step:
            self._begin(mapping.index_mapping, by_id)
        self._use(*self._in_use)

    def collect(self) -> Callable[[], dict[str, Said]] | None:
        """Called after each pass: what the server is to hear of requests, as `Inline.collect`."""
        return self.inline.collect() if self.inline is not None else None

    def _write(self, slot: int, request: LoRARequest) -> None:
        wanted = wire.wanted(request)
        mix: Mapping[str, Coefficient] = wanted.mix or {}
        if wanted.mix is None and self.inline is not None and (known := self.inline.decided(request.lora_int_id)):
            mix = known.coefficients
        assert self._options.gated or wanted.gating is None, "an engine that gates is started so"
        by_column = {self._residents.column(digest): c for digest, c in mix.items()}
        self._state.write(slot, by_column, upper=wanted.upper, gating=wanted.gating)

    def _begin(self, token_ids: tuple[int, ...], by_id: dict[int, LoRARequest]) -> None:
        ids, inverse = np.unique(np.asarray(token_ids, dtype=np.int64), return_inverse=True)
        slots = np.array([self._slots.slot(int(i)) for i in ids], dtype=np.int64)[inverse]
        present = [by_id[int(i)] for i in ids if int(i) in by_id]
        self._probes.begin(present, self._slots)
        if self.inline is not None:
            self.inline.begin(self._parts(), self._slots, slots)
        self._parts = tuple
        self._step = token_ids
        used, apart = set[int](), set[int]()
        for request in present:
            columns = frozenset(k for digest in self._digests(request) if (k := self._column(digest)) is not None)
            self._columns[self._slots.slot(request.lora_int_id)] = columns
            (apart if self._sparse and wire.wanted(request).gating else used).update(columns)
        self._in_use = used, apart
        self._state.begin(slots, active=bool(used) or any(_is_warm_up(r) for r in present))

    def _digests(self, request: LoRARequest) -> set[str]:
        """The experts that a request uses, or may turn out to use."""
        return set(wire.wanted(request).mix or ()) if self.inline is None else self.inline.experts(request)

    def probe_kinds(self) -> list[str]:
        """The kinds of probes that are observed."""
        return self._probes.kinds

    def take_probes(self, kind: str, probes: list[int], tokens: list[int]) -> Any:
        """What was observed of probes of the same tokens, None if they did not pass by as they were sent."""
        return self._probes.take(kind, probes, tokens)

    def slots(self) -> tuple[int, int]:
        """Slots in use, and slots."""
        return len(self._slots), self._slots.capacity

    @property
    def bank_bytes(self) -> int:
        return sum(bank.nbytes for banks in (self._banks, self._apart) for bank in banks.by_site.values())

    @property
    def slot_bytes(self) -> int:
        return self._state.coefficients[:, 0].nbytes

    # What vLLM calls while it warms up, and its adapter end points.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        return self.add_adapter(request)

    def add_adapter(self, request: LoRARequest) -> bool:
        known = request.lora_int_id in self._slots
        self.set_active_adapters({request}, None)
        return not known

    def remove_adapter(self, request_id: int) -> bool:
        return self._slots.remove(request_id)

    def pin_adapter(self, request_id: int) -> bool:
        raise NotImplementedError("a mix is a row of numbers: there is nothing to pin")

    def remove_all_adapters(self) -> None:
        self._slots.clear()

    def list_adapters(self) -> set[int]:
        return self._slots.ids()

    def supports_tower_connector_lora(self) -> bool:
        return False


def _is_warm_up(request: LoRARequest) -> bool:
    return bool(request.lora_name.startswith("warmup_"))
