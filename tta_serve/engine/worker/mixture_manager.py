"""What vLLM's model runners call, in place of vLLM's own LoRA manager.

A "LoRA" of vLLM is a mix here: activating one writes a row of coefficients, and copies no weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from router.errors import RouterError
from tta_serve.engine.options import BankOptions
from tta_serve.engine.policy_wire import PackedPolicy
from tta_serve.engine.wire import EARLIER
from tta_serve.engine.worker.expert_lifecycle import ExpertLifecycle
from tta_serve.engine.worker.inline_routing import Reports, StepPart
from tta_serve.engine.worker.loaded_model import LoadedModel
from tta_serve.engine.worker.residents import Residents
from tta_serve.engine.worker.step_planner import StepPlanner

logger = init_logger(f"vllm.{__name__}")


class MixtureManager:
    """Answers every call that vLLM's model runners make to `LRUCacheWorkerLoRAManager`.

    vLLM constructs it before the model is loaded, and calls `create_lora_manager` right after; that
    builds the parts below, which do the work.
    """

    is_enabled = True

    model: LoadedModel
    """The model, with its coefficients, banks and observers."""
    steps: StepPlanner
    """What the tokens of each step use."""
    experts: ExpertLifecycle
    """Loads and unloads experts."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        embedding_modules: Any,
        options: BankOptions,
    ) -> None:
        """Store what the model will be served with.

        Args:
            vllm_config: vLLM's configuration.
            device: Where the model will be.
            embedding_modules: Not needed.
            options: Ours.
        """
        assert vllm_config.lora_config is not None
        self._slots = vllm_config.lora_config.max_loras
        self._device = device
        self._options = options
        self._residents = Residents(options.capacity)

    # What vLLM calls when it has loaded the model, and at each step.

    def create_lora_manager(self, model: nn.Module, vllm_config: VllmConfig) -> nn.Module:
        """Prepare a model for mixes, and load the experts. The model stays the same object."""
        self.model = LoadedModel(
            model,
            vllm_config,
            self._device,
            self._options,
            self._slots * (1 + EARLIER),
            self._residents.find_column,
        )
        self.steps = StepPlanner(self.model, self._residents, self._slots)
        self.experts = ExpertLifecycle(self.model, self.steps, self._residents, self._options)
        logger.info(
            "mixture slots: %s, %d slots, %d bytes of banks",
            self.experts.count_used(),
            self._slots,
            self.model.bank_bytes,
        )
        return model

    def set_active_adapters(self, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        """Get ready for a step, with the requests in the batch and each token's adapter id."""
        if mapping is None:
            self.steps.bind(requests)
        else:
            self.steps.plan(requests, mapping)

    # What our wrappers of vLLM's methods call around a step.

    def expect(self, parts: Callable[[], Sequence[StepPart]]) -> None:
        """Take, before `set_active_adapters`, a way to learn where each request stands."""
        self.steps.expect(parts)

    def collect(self) -> Callable[[], Reports] | None:
        """Return how to get what a pass reports of requests, as `InlineRouting.collect` does."""
        return self.model.inline.collect() if self.model.inline is not None else None

    def take_switch(self) -> float | None:
        """Return the seconds that a switch of dense mixes took, None if there was none."""
        return self.model.dense.take_switch() if self.model.dense is not None else None

    @contextmanager
    def making_prompt_logits(self, states: Tensor) -> Iterator[None]:
        """Make logits of slices of all tokens' states, [tokens, hidden], meanwhile."""
        rows = self.model.logits
        with nullcontext() if rows is None else rows.of_prompts(states):
            yield

    # What the server calls through the worker's extension, beside what `experts` offers.

    def install(self, packed: PackedPolicy) -> None:
        """Let requests be decided by a policy.

        Raises:
            RouterError: The policy does not fit.
        """
        if self.model.inline is None:
            raise RouterError("this engine reads no features; start it with a tap layer")
        self.model.inline.table.install(packed, self._residents.find_column)

    # What vLLM calls while it warms up, and at its adapter end points.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Do nothing: vLLM would keep the weights of its warm-up adapters for a while."""
        yield

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        """Return the rank of warm-up adapters, which is of no effect."""
        return default_rank

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        """Give a warm-up adapter a slot, as to any mix."""
        return self.add_adapter(request)

    def add_adapter(self, request: LoRARequest) -> bool:
        """Give a mix a slot. Returns whether it had none."""
        return self.steps.bind([request])

    def remove_adapter(self, request_id: int) -> bool:
        """Free the slot of a mix. Returns whether it had one."""
        return self.steps.slots.remove(request_id)

    def pin_adapter(self, request_id: int) -> bool:
        """Refuse."""
        raise NotImplementedError("a mix is a row of numbers: there is nothing to pin")

    def remove_all_adapters(self) -> None:
        """Free all slots."""
        self.steps.slots.clear()

    def list_adapters(self) -> set[int]:
        """Return the ids of the mixes that have a slot."""
        return self.steps.slots.ids()

    def supports_tower_connector_lora(self) -> bool:
        """Say that experts serve the language model alone."""
        return False
