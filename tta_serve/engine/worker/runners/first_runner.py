"""The seam of vLLM's first model runner."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from tta_serve.engine.wire import read_order
from tta_serve.engine.worker.inline_routing import StepPart
from tta_serve.engine.worker.runners.runner_seam import find_manager, wrap_sample_tokens


class FirstRunner:
    """`RunnerSeam` of vllm.v1.worker.gpu_model_runner."""

    def wrap(self) -> None:
        LoRAModelRunnerMixin.set_active_loras = _wrap_set_active_loras(
            LoRAModelRunnerMixin.set_active_loras
        )
        GPUModelRunner.sample_tokens = wrap_sample_tokens(GPUModelRunner.sample_tokens)
        GPUModelRunner._get_prompt_logprobs_dict = _wrap_get_prompt_logprobs(
            GPUModelRunner._get_prompt_logprobs_dict
        )

    def find_adapters(self, runner: Any) -> Collection[LoRARequest]:
        requests = runner.requests.values()
        return [one.lora_request for one in requests if one.lora_request is not None]


def _wrap_set_active_loras(stock: Callable[..., None]) -> Callable[..., None]:
    """Tell the manager, before each step, where the step's requests stand."""

    @wraps(stock)
    def set_active_loras(
        self: Any, input_batch: Any, num_scheduled_tokens: Any, *args: Any, **named: Any
    ) -> None:
        manager = find_manager(self)
        if manager is not None:
            manager.expect(lambda: _split_step(self.requests, input_batch, num_scheduled_tokens))
        stock(self, input_batch, num_scheduled_tokens, *args, **named)

    return set_active_loras


def _split_step(requests: Mapping[str, Any], batch: Any, counts: Any) -> list[StepPart]:
    """Return the tokens of each request with an adapter in a step."""
    parts = []
    first = 0
    for name, start, count in zip(
        batch.req_ids, batch.num_computed_tokens_cpu.tolist(), counts.tolist(), strict=False
    ):
        adapter = requests[name].lora_request
        if adapter is not None:
            parts.append(StepPart(name, adapter, first, start, count, read_order(adapter).turn))
        first += count
    return parts


def _wrap_get_prompt_logprobs(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Tell the manager that logits are of slices of all tokens' states meanwhile."""

    @wraps(stock)
    def get_prompt_logprobs(self: Any, hidden_states: Any, *args: Any, **named: Any) -> Any:
        manager = find_manager(self)
        if manager is None:
            return stock(self, hidden_states, *args, **named)
        with manager.making_prompt_logits(hidden_states):
            return stock(self, hidden_states, *args, **named)

    return get_prompt_logprobs
