"""The functions of vLLM that are wrapped: for routing inside the pass, heads, and shared prefixes.

model runner, before a step   set_active_loras     tells the manager which tokens of which
                                                   request are in the step
model runner, after it        sample_tokens        puts what the step decided beside its output
model runner, for             _get_prompt_         tells the manager that logits are of
log-probabilities of prompts  logprobs_dict        slices of all tokens' states
scheduler                     update_from_output   attaches it to every output of the request,
                                                   which goes to whoever asked
prefix cache                  generate_block_      names each block by what its tokens run as
                              hash_extra_keys
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from tta_serve.engine.wire import attach_report, read_order
from tta_serve.engine.worker.dense.dense_scheduler import SWITCH
from tta_serve.engine.worker.inline_routing import Reports, StepPart
from tta_serve.engine.worker.mixture_manager import MixtureManager
from tta_serve.engine.worker.prefix_keys import name_blocks

_REPORTS = "tta_reports"  # the attribute in which outputs and schedulers carry reports
_SPARE = 64


def wrap_vllm() -> None:
    """Wrap what this file names."""
    LoRAModelRunnerMixin.set_active_loras = _wrap_set_active_loras(
        LoRAModelRunnerMixin.set_active_loras
    )
    GPUModelRunner.sample_tokens = _wrap_sample_tokens(GPUModelRunner.sample_tokens)
    GPUModelRunner._get_prompt_logprobs_dict = _wrap_get_prompt_logprobs(
        GPUModelRunner._get_prompt_logprobs_dict
    )
    Scheduler.update_from_output = _wrap_update_from_output(Scheduler.update_from_output)
    for module in (kv_cache_utils, block_pool):
        module.generate_block_hash_extra_keys = name_blocks(module.generate_block_hash_extra_keys)


def _wrap_set_active_loras(stock: Callable[..., None]) -> Callable[..., None]:
    """Tell the manager, before each step, where the step's requests stand."""

    @wraps(stock)
    def set_active_loras(
        self: Any, input_batch: Any, num_scheduled_tokens: Any, *args: Any, **named: Any
    ) -> None:
        manager = getattr(self, "lora_manager", None)
        if isinstance(manager, MixtureManager):
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


def _wrap_sample_tokens(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Put what a step decided beside its output."""

    @wraps(stock)
    def sample_tokens(self: Any, *args: Any, **named: Any) -> Any:
        output = stock(self, *args, **named)
        manager = getattr(self, "lora_manager", None)
        report = _find_report(manager) if isinstance(manager, MixtureManager) else None
        if report is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _ReportingOutput(output, report)
        report(output)
        return output

    return sample_tokens


def _find_report(manager: MixtureManager) -> Callable[[Any], None] | None:
    """Return what puts a step's reports beside its output, None if it has none."""
    collect, switch_s = manager.collect(), manager.take_switch()
    if collect is None and switch_s is None:
        return None

    def report(output: Any) -> None:
        if collect is not None:
            setattr(output, _REPORTS, collect())
        if switch_s is not None:
            setattr(output, SWITCH, switch_s)

    return report


def _wrap_get_prompt_logprobs(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Tell the manager that logits are of slices of all tokens' states meanwhile."""

    @wraps(stock)
    def get_prompt_logprobs(self: Any, hidden_states: Any, *args: Any, **named: Any) -> Any:
        manager = getattr(self, "lora_manager", None)
        if not isinstance(manager, MixtureManager):
            return stock(self, hidden_states, *args, **named)
        with manager.making_prompt_logits(hidden_states):
            return stock(self, hidden_states, *args, **named)

    return get_prompt_logprobs


class _ReportingOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output still on its way from the device, and what its step reports."""

    def __init__(self, output: AsyncModelRunnerOutput, report: Callable[[Any], None]) -> None:
        self._output = output
        self._report = report

    def get_output(self) -> Any:
        output = self._output.get_output()
        self._report(output)
        return output


def _wrap_update_from_output(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Attach what is known of a request to each of its outputs."""

    @wraps(stock)
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = stock(self, scheduler_output, model_runner_output)
        known: Reports = self.__dict__.setdefault(_REPORTS, {})
        known.update(getattr(model_runner_output, _REPORTS, {}))
        if not known:
            return outputs

        for client in outputs.values():
            for output in client.outputs:
                if output.request_id in known:
                    attach_report(output, known[output.request_id])

        # Forget requests that have ended, now and then.
        if len(known) > len(self.requests) + _SPARE:
            self.__dict__[_REPORTS] = {
                name: report for name, report in known.items() if name in self.requests
            }
        return outputs

    return update_from_output
