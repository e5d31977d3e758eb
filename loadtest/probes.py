"""In the workers of sides `mixture` and `stock`: how many bytes their experts, mixes and slots take."""

from typing import Any

from torch import Tensor, nn

from tta_serve.engine.mixture import MixtureMethod
from tta_serve.engine.worker import WorkerExtension


class MixtureExtension(WorkerExtension):
    """Ours, with one more method."""

    def bench_bytes(self) -> tuple[int, int]:
        """Bytes of all banks, and of one slot."""
        return mixture_bytes(self.model_runner.model)


class StockExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    model_runner: Any

    def bench_bytes(self) -> int:
        """Bytes of all slots of vLLM's own adapters."""
        modules = self.model_runner.lora_manager._adapter_manager.modules.values()
        stacks = [getattr(m, side, ()) for m in modules for side in ("lora_a_stacked", "lora_b_stacked")]
        parts: list[Tensor] = [part for stack in stacks for part in stack]
        return sum(part.nbytes for part in parts)


def mixture_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of all banks, and of one slot: its rows of the coefficient table. All that loadtest knows of their insides."""
    methods = [getattr(m, "quant_method", None) for m in model.modules()]
    ours = [m for m in methods if isinstance(m, MixtureMethod)]
    table = ours[0].state.coefficients
    return sum(m.bank.nbytes for m in ours if m.bank is not None), table.nbytes // table.shape[-2]
