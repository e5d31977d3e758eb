"""The seam of vLLM's second model runner."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any

import numpy as np
from vllm.lora.request import LoRARequest
from vllm.v1.worker.gpu.lora_utils import LoraState
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

from tta_serve.engine.wire import read_order
from tta_serve.engine.worker.inline_routing import StepPart
from tta_serve.engine.worker.logits import LogitRows
from tta_serve.engine.worker.runners.runner_seam import find_manager, wrap_sample_tokens


class SecondRunner:
    """`RunnerSeam` of vllm.v1.worker.gpu.model_runner."""

    def wrap(self) -> None:
        LoraState.__init__ = _widen_ids(LoraState.__init__)
        GPUModelRunner.prepare_inputs = _wrap_prepare_inputs(GPUModelRunner.prepare_inputs)
        GPUModelRunner.sample_tokens = wrap_sample_tokens(GPUModelRunner.sample_tokens)
        PromptLogprobsWorker.compute_prompt_logprobs = _wrap_compute_prompt_logprobs(
            PromptLogprobsWorker.compute_prompt_logprobs
        )

    def find_adapters(self, runner: Any) -> Collection[LoRARequest]:
        adapters: Mapping[str, LoRARequest] = runner.lora_state.lora_requests
        return adapters.values()


def _widen_ids(stock: Callable[..., None]) -> Callable[..., None]:
    """Keep adapter ids in 64 bits, of which ours use all, and not in 32."""

    @wraps(stock)
    def init(self: Any, *args: Any, **named: Any) -> None:
        stock(self, *args, **named)
        self.lora_ids = self.lora_ids.astype(np.int64)

    return init


def _wrap_prepare_inputs(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Tell the manager, before each step, where the step's requests stand."""

    @wraps(stock)
    def prepare_inputs(self: Any, *args: Any, **named: Any) -> Any:
        batch = stock(self, *args, **named)
        manager = find_manager(self)
        if manager is not None:
            adapters = self.lora_state.lora_requests
            manager.expect(lambda: _split_step(adapters, batch))
        return batch

    return prepare_inputs


def _split_step(adapters: Mapping[str, LoRARequest], batch: Any) -> list[StepPart]:
    """Return the tokens of each request with an adapter in a step."""
    rows = zip(
        batch.req_ids,
        batch.query_start_loc_np.tolist(),
        batch.num_computed_tokens_np.tolist(),
        batch.num_scheduled_tokens.tolist(),
        strict=False,  # the places where queries start have their end too
    )
    return [
        StepPart(name, adapters[name], first, start, count, read_order(adapters[name]).turn)
        for name, first, start, count in rows
        if name in adapters
    ]


def _wrap_compute_prompt_logprobs(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Say that logits are of slices of all tokens' states meanwhile."""

    @wraps(stock)
    def compute_prompt_logprobs(
        self: Any, logits_fn: Callable[..., Any], hidden_states: Any, *args: Any, **named: Any
    ) -> Any:
        rows = getattr(logits_fn, "__self__", None)  # where the model makes logits by ours
        if not isinstance(rows, LogitRows):
            return stock(self, logits_fn, hidden_states, *args, **named)
        with rows.of_prompts(hidden_states):
            return stock(self, logits_fn, hidden_states, *args, **named)

    return compute_prompt_logprobs
