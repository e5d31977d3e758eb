"""What vLLM is made to hand on for routing inside the pass: where requests stand, and what was decided.

The model runner tells the manager, before each step, which tokens of which request are in it; after the step what was decided
travels with the step's output to the scheduler, and from there with every output of the request to whoever asked.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from tta_serve.engine.inline import Part
from tta_serve.engine.manager import MixtureManager
from tta_serve.engine.wire import SAID, Said, wanted

_SPARE = 64


def hand_on() -> None:
    """Wrap the methods of vLLM that pass by."""
    LoRAModelRunnerMixin.set_active_loras = _expecting(LoRAModelRunnerMixin.set_active_loras)
    GPUModelRunner.sample_tokens = _telling(GPUModelRunner.sample_tokens)
    Scheduler.update_from_output = _forwarding(Scheduler.update_from_output)


def _expecting(stock: Callable[..., None]) -> Callable[..., None]:
    @wraps(stock)
    def set_active_loras(self: Any, input_batch: Any, num_scheduled_tokens: Any, *args: Any, **named: Any) -> None:
        manager = getattr(self, "lora_manager", None)
        if isinstance(manager, MixtureManager):
            manager.expect(lambda: _parts(self.requests, input_batch, num_scheduled_tokens))
        stock(self, input_batch, num_scheduled_tokens, *args, **named)

    return set_active_loras


def _parts(requests: Mapping[str, Any], batch: Any, counts: Any) -> list[Part]:
    parts, first = [], 0
    for name, start, count in zip(batch.req_ids, batch.num_computed_tokens_cpu.tolist(), counts.tolist(), strict=False):
        request = requests[name]
        if request.lora_request is not None:
            parts.append(Part(name, request.lora_request, first, start, count, wanted(request.lora_request).turn))
        first += count
    return parts


def _telling(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def sample_tokens(self: Any, *args: Any, **named: Any) -> Any:
        output = stock(self, *args, **named)
        manager = getattr(self, "lora_manager", None)
        collect = manager.collect() if isinstance(manager, MixtureManager) else None
        if collect is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _Told(output, collect)
        setattr(output, SAID, collect())
        return output

    return sample_tokens


class _Told(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output still on its way from the device, and what was decided in its step."""

    def __init__(self, output: AsyncModelRunnerOutput, collect: Callable[[], dict[str, Said]]) -> None:
        self._output, self._collect = output, collect

    def get_output(self) -> Any:
        output = self._output.get_output()
        setattr(output, SAID, self._collect())
        return output


def _forwarding(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = stock(self, scheduler_output, model_runner_output)
        known: dict[str, Said] = self.__dict__.setdefault(SAID, {})
        known.update(getattr(model_runner_output, SAID, {}))
        if known:
            for output in (output for client in outputs.values() for output in client.outputs):
                if output.request_id in known:
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), SAID: known[output.request_id]}
            if len(known) > len(self.requests) + _SPARE:
                self.__dict__[SAID] = {name: said for name, said in known.items() if name in self.requests}
        return outputs

    return update_from_output
