"""The methods that vLLM's workers gain, for the server to call by `collective_rpc`."""

from collections.abc import Callable, Sequence
from typing import Any

from adapters.errors import AdapterError
from router.errors import RouterError
from tta_serve.engine import wire
from tta_serve.engine.policy_wire import PackedPolicy
from tta_serve.engine.worker.mixture_manager import MixtureManager
from tta_serve.engine.worker.vllm_hooks import get_seam


class WorkerExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`.

    The prefix keeps clear of the worker's own names. A method that may be refused returns what is
    wrong, None if nothing is: an error would end the worker's call.
    """

    model_runner: Any

    @property
    def _tta_manager(self) -> MixtureManager:
        manager: MixtureManager = self.model_runner.lora_manager
        return manager

    # Experts and policies

    def tta_prepare(self, name: str, digest: str) -> str | None:
        """Begin to load an expert. Returns what is wrong."""
        return _refusal(lambda: self._tta_manager.experts.prepare(name, digest))

    def tta_prepared(self, digest: str) -> bool:
        """Whether an expert has been read."""
        return self._tta_manager.experts.is_prepared(digest)

    def tta_commit(self, digest: str) -> str | None:
        """Make an expert usable from the next step on. Returns what is wrong."""
        return _refusal(lambda: self._tta_manager.experts.commit(digest))

    def tta_discard(self, digest: str) -> None:
        """Drop an expert that was read or is being read."""
        self._tta_manager.experts.discard(digest)

    def tta_unload(self, digest: str) -> bool:
        """Forget an expert, unless a request that is in the worker uses it.

        Returns whether it is gone.
        """
        running = get_seam().find_adapters(self.model_runner)
        return self._tta_manager.experts.unload(digest, running)

    def tta_install(self, name: str, settings: str, tensors: bytes) -> str | None:
        """Let requests be decided by a policy inside the pass. Returns what is wrong."""
        packed = PackedPolicy(name, settings, tensors)
        return _refusal(lambda: self._tta_manager.install(packed))

    # Probes

    def tta_probe_kinds(self) -> list[wire.ProbeKind]:
        """Return the kinds of probes that are observed."""
        return self._tta_manager.model.probes.kinds

    def tta_take_probes(
        self, kind: wire.ProbeKind, probes: Sequence[int], tokens: Sequence[int]
    ) -> dict[str, Any] | None:
        """Return what was observed of probes that were sent these tokens, packed.

        It is None if there is nothing to give.
        """
        result = self._tta_manager.model.probes.take(kind, probes, tokens)
        return None if result is None else wire.pack(result)

    # Figures

    def tta_slots(self) -> tuple[int, int]:
        """Return the slots in use, and the slots there are."""
        slots = self._tta_manager.steps.slots
        return len(slots), slots.capacity

    def tta_bytes(self) -> tuple[int, int]:
        """Return the bytes of the banks of the experts in use, and of one slot, on this worker."""
        model = self._tta_manager.model
        return model.bank_bytes, model.slot_bytes

    def tta_used(self) -> tuple[int, int, int]:
        """Return the experts, ranks and bytes that the worker keeps ready."""
        used = self._tta_manager.experts.count_used()
        return used.experts, used.ranks, used.bytes

    def tta_dense(self) -> tuple[int, int]:
        """Return the bytes of dense experts and of clean copies, and how many switches there were.

        They are of this worker.
        """
        dense = self._tta_manager.model.dense
        return (0, 0) if dense is None else (dense.nbytes, dense.switches)


def _refusal(action: Callable[[], None]) -> str | None:
    """Do something, and return what was wrong."""
    try:
        action()
    except (AdapterError, RouterError, OSError) as error:
        return str(error)
    return None
