"""Methods that vLLM's workers gain, for `collective_rpc`."""

from typing import Any


class WorkerExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`; the prefix keeps clear of the worker's own names."""

    model_runner: Any

    def tta_take_features(self, probes: list[int]) -> list[tuple[int, int, list[float]]]:
        return list(self.model_runner.lora_manager.take_features(probes))

    def tta_slots(self) -> tuple[int, int]:
        """Slots in use, and slots."""
        used, total = self.model_runner.lora_manager.slots()
        return used, total

    def tta_bytes(self) -> tuple[int, int]:
        """Bytes of the banks of the experts in use, and of one slot, on this worker."""
        manager = self.model_runner.lora_manager
        return manager.bank_bytes, manager.slot_bytes
