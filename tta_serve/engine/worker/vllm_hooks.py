"""The functions of vLLM that are wrapped: for routing inside the pass, heads, and shared prefixes.

model runner   by its seam           tells the manager which tokens of which request are in a step,
                                     and puts what the step decided beside its output
scheduler      update_from_output    attaches that to every output of the request, which goes to
                                     whoever asked
prefix cache   generate_block_       names each block by what its tokens run as
               hash_extra_keys
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm import envs
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.core.sched.scheduler import Scheduler

from tta_serve.engine.wire import attach_report
from tta_serve.engine.worker.inline_routing import Reports
from tta_serve.engine.worker.prefix_keys import name_blocks
from tta_serve.engine.worker.runners.runner_seam import REPORTS, RunnerSeam

_SPARE = 64


def is_second_runner() -> bool:
    """Whether engines run on vLLM's second model runner, which has to be asked for."""
    return bool(envs.VLLM_USE_V2_MODEL_RUNNER)


def get_seam() -> RunnerSeam:
    """Return the seam of the model runner that engines run on."""
    # Of the other one nothing is imported.
    if is_second_runner():
        from tta_serve.engine.worker.runners.second_runner import SecondRunner

        return SecondRunner()
    from tta_serve.engine.worker.runners.first_runner import FirstRunner

    return FirstRunner()


def wrap_vllm() -> None:
    """Wrap what this file names."""
    get_seam().wrap()
    Scheduler.update_from_output = _wrap_update_from_output(Scheduler.update_from_output)
    for module in (kv_cache_utils, block_pool):
        module.generate_block_hash_extra_keys = name_blocks(module.generate_block_hash_extra_keys)


def _wrap_update_from_output(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Attach what is known of a request to each of its outputs."""

    @wraps(stock)
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = stock(self, scheduler_output, model_runner_output)
        known: Reports = self.__dict__.setdefault(REPORTS, {})
        known.update(getattr(model_runner_output, REPORTS, {}))
        if not known:
            return outputs

        for client in outputs.values():
            for output in client.outputs:
                if output.request_id in known:
                    attach_report(output, known[output.request_id])

        # Forget requests that have ended, now and then.
        if len(known) > len(self.requests) + _SPARE:
            self.__dict__[REPORTS] = {
                name: report for name, report in known.items() if name in self.requests
            }
        return outputs

    return update_from_output
