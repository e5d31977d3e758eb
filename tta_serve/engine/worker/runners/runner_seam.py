"""What mixture slots need of a model runner of vLLM, and what is the same in both."""

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, Protocol

from vllm.lora.request import LoRARequest
from vllm.v1.outputs import AsyncModelRunnerOutput

from tta_serve.engine.worker.dense.dense_scheduler import SWITCH
from tta_serve.engine.worker.mixture_manager import MixtureManager

REPORTS = "tta_reports"
"""The attribute in which outputs of model runners, and schedulers, carry reports."""


class RunnerSeam(Protocol):
    """The places at which mixture slots meet a model runner."""

    def wrap(self) -> None:
        """Wrap methods of the runner's class, for what a step tells the manager and hears of it.

        before a step          which tokens of which request are in it: `MixtureManager.expect`
        after it               what it decided, put beside its output: `wrap_sample_tokens`
        for log-probabilities  that logits are of slices of all tokens' states
        of prompts
        """

    def find_adapters(self, runner: Any) -> Collection[LoRARequest]:
        """Return the mixes of the requests that are in a runner."""


def find_manager(runner: Any) -> MixtureManager | None:
    """Return a runner's manager, None for one of vLLM's own."""
    manager = getattr(runner, "lora_manager", None)
    return manager if isinstance(manager, MixtureManager) else None


def wrap_sample_tokens(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Put what a step decided beside its output."""

    @wraps(stock)
    def sample_tokens(self: Any, *args: Any, **named: Any) -> Any:
        output = stock(self, *args, **named)
        manager = find_manager(self)
        report = _find_report(manager) if manager is not None else None
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
            setattr(output, REPORTS, collect())
        if switch_s is not None:
            setattr(output, SWITCH, switch_s)

    return report


class _ReportingOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output still on its way from the device, and what its step reports."""

    def __init__(self, output: AsyncModelRunnerOutput, report: Callable[[Any], None]) -> None:
        self._output = output
        self._report = report

    def get_output(self) -> Any:
        output = self._output.get_output()
        self._report(output)
        return output
