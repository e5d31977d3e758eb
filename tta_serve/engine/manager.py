"""The worker's side: in place of vLLM's LoRA manager, one that keeps rows of coefficients instead of copies of weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from adapters.errors import ExpertError
from adapters.library import Library
from tta_serve.engine import wire
from tta_serve.engine.attach import attach
from tta_serve.engine.mixture import StepState, Tap
from tta_serve.engine.options import BankOptions
from tta_serve.engine.slots import SlotTable

logger = init_logger(f"vllm.{__name__}")

_UNREAD_PROBES = 1024


class MixtureManager:
    """Answers every call that vLLM's model runners make to `LRUCacheWorkerLoRAManager`.

    A "LoRA" of vLLM is a mix here: activating one writes a row of K numbers.
    """

    is_enabled = True

    def __init__(self, vllm_config: VllmConfig, device: torch.device, embedding_modules: Any, options: BankOptions) -> None:
        assert vllm_config.lora_config is not None
        self._options = options
        self._digests = {digest: k for k, (_, digest) in enumerate(options.experts)}
        self._slots = SlotTable(vllm_config.lora_config.max_loras)
        self._mixes: dict[int, LoRARequest] = {}
        self._device = device
        self._state = StepState(
            self._slots.capacity,
            len(options.experts),
            vllm_config.scheduler_config.max_num_batched_tokens,
            device,
        )
        if options.tap_layer is not None:
            self._state.tap = Tap(_UNREAD_PROBES)

    def create_lora_manager(self, model: nn.Module, vllm_config: VllmConfig) -> nn.Module:
        """Load the experts and attach their banks to `model`, which stays the same object."""
        library = Library.open(self._options.library)
        experts = []
        for name, digest in self._options.experts:
            expert = library.experts.get(name)
            if expert is None or expert.digest != digest:
                raise ExpertError(f"expert {name!r} in {library.root} changed since the server read it; restart")
            experts.append(expert)
        size = attach(model, experts, self._state, vllm_config.model_config.dtype, self._options.tap_layer)
        logger.info("mixture slots: %d experts, %d slots, bank of %d bytes", len(experts), self._slots.capacity, size)
        return model

    def set_active_adapters(self, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        """Called once a step, before the forward pass, with the requests in the batch and each token's adapter id."""
        by_id = {r.lora_int_id: r for r in requests}
        for request_id, slot in self._slots.bind(by_id):
            self._mixes[request_id] = by_id[request_id]
            self._state.write(slot, self._row(by_id[request_id]))
        self._forget_evicted()
        if mapping is not None:
            self._begin(np.asarray(mapping.index_mapping, dtype=np.int64), by_id)

    def _begin(self, token_ids: np.ndarray[Any, np.dtype[np.int64]], by_id: dict[int, LoRARequest]) -> None:
        ids, inverse = np.unique(token_ids, return_inverse=True)
        slots = np.array([self._slots.slot(int(i)) for i in ids], dtype=np.int64)
        present = [by_id[int(i)] for i in ids if int(i) in by_id]
        if self._state.tap is not None:
            probes = {r.lora_int_id: self._slots.slot(r.lora_int_id) for r in present if wire.is_probe(r)}
            self._state.tap.begin(probes)
        self._state.begin(slots[inverse], active=any(not wire.is_probe(r) for r in present))

    def _row(self, request: LoRARequest) -> list[float]:
        row = [0.0] * len(self._digests)
        if _is_warm_up(request):
            return row
        for digest, coefficient in wire.coefficients(request).items():
            row[self._digests[digest]] = coefficient
        return row

    def _forget_evicted(self) -> None:
        if len(self._mixes) > len(self._slots):
            self._mixes = {i: r for i, r in self._mixes.items() if i in self._slots}

    def take_features(self, probes: list[int]) -> list[tuple[int, int, list[float]]]:
        """(probe id, tokens seen, mean of the tapped input) of each finished probe; unknown ones are left out."""
        assert self._state.tap is not None, "the engine was started without a tap layer"
        taken = [(probe, self._state.tap.take(probe)) for probe in probes]
        return [(probe, found[0], found[1]) for probe, found in taken if found is not None]

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
        self._mixes.pop(request_id, None)
        return self._slots.remove(request_id)

    def pin_adapter(self, request_id: int) -> bool:
        raise NotImplementedError("a mix is a row of numbers: there is nothing to pin")

    def remove_all_adapters(self) -> None:
        self._slots.clear()
        self._mixes.clear()

    def list_adapters(self) -> set[int]:
        return self._slots.ids()

    def supports_tower_connector_lora(self) -> bool:
        return False


def _is_warm_up(request: LoRARequest) -> bool:
    return bool(request.lora_name.startswith("warmup_"))
