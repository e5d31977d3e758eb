"""Methods that vLLM's workers gain, for `collective_rpc`."""

from collections.abc import Callable
from typing import Any

from adapters.errors import AdapterError
from router.policy import RouterError


class WorkerExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`; the prefix keeps clear of the worker's own names."""

    model_runner: Any

    def tta_probe_kinds(self) -> list[str]:
        return list(self.model_runner.lora_manager.probe_kinds())

    def tta_take_probes(self, kind: str, probes: list[int], tokens: list[int]) -> Any:
        """What was observed of probes that were sent these tokens, as plain values; None if there is nothing to give."""
        return self.model_runner.lora_manager.take_probes(kind, probes, tokens)

    def tta_slots(self) -> tuple[int, int]:
        """Slots in use, and slots."""
        used, total = self.model_runner.lora_manager.slots()
        return used, total

    def tta_bytes(self) -> tuple[int, int]:
        """Bytes of the banks of the experts in use, and of one slot, on this worker."""
        manager = self.model_runner.lora_manager
        return manager.bank_bytes, manager.slot_bytes

    def tta_prepare(self, name: str, digest: str) -> str | None:
        """Begin to load an expert. Returns what is wrong, None if nothing is: an error here would end the worker's call."""
        return self._refused(lambda manager: manager.prepare(name, digest))

    def tta_prepared(self, digest: str) -> bool:
        return bool(self.model_runner.lora_manager.prepared(digest))

    def tta_commit(self, digest: str) -> str | None:
        return self._refused(lambda manager: manager.commit(digest))

    def tta_discard(self, digest: str) -> None:
        self.model_runner.lora_manager.discard(digest)

    def tta_unload(self, digest: str) -> bool:
        """Whether the expert is gone; it stays while a request that is in the worker uses it."""
        running = [r.lora_request for r in self.model_runner.requests.values() if r.lora_request is not None]
        return bool(self.model_runner.lora_manager.unload(digest, running))

    def tta_install(self, policy: str, settings: str, data: bytes) -> str | None:
        """Let requests be decided by a policy inside the pass. Returns what is wrong, None if nothing is."""
        return self._refused(lambda manager: manager.install(policy, settings, data))

    def tta_used(self) -> tuple[int, int, int]:
        """Experts, ranks and bytes that the worker keeps ready."""
        used = self.model_runner.lora_manager.used()
        return used.experts, used.ranks, used.bytes

    def _refused(self, action: Callable[[Any], None]) -> str | None:
        try:
            action(self.model_runner.lora_manager)
        except (AdapterError, RouterError, OSError) as error:
            return str(error)
        return None
