"""In the worker of the side `stock`: how many bytes its slots take."""

from typing import Any

from torch import Tensor


class StockExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    model_runner: Any

    def bench_bytes(self) -> int:
        """Return the bytes of all slots of vLLM's own adapters."""
        modules = self.model_runner.lora_manager._adapter_manager.modules.values()
        stacks = [
            getattr(m, side, ()) for m in modules for side in ("lora_a_stacked", "lora_b_stacked")
        ]
        parts: list[Tensor] = [part for stack in stacks for part in stack]
        return sum(part.nbytes for part in parts)
