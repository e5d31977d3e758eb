"""The server's calls of the workers: each asks all workers of an engine at once."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from adapters.errors import ExpertError
from adapters.mix import MixRules
from router.errors import RouterError
from router.scoring.heads import Head
from tta_serve.engine import wire
from tta_serve.engine.options import Capacity
from tta_serve.engine.policy_wire import pack_policy

_POLL_S = 0.02
_TIMEOUT_S = 30.0


class Workers:
    """The workers of one engine, asked by the methods of `worker.extension.WorkerExtension`."""

    def __init__(self, rpc: Callable[..., Awaitable[list[Any]]]) -> None:
        """Store how workers are called.

        Args:
            rpc: `collective_rpc` of vLLM's asynchronous engine.
        """
        self._rpc = rpc

    async def load(self, name: str, digest: str) -> None:
        """Keep an expert of the library ready; requests run on while it is read.

        Raises:
            ExpertError: A worker refuses it, and then none keeps it.
        """
        try:
            _check(await self._call_all("tta_prepare", name, digest))
            while not all(await self._call_all("tta_prepared", digest)):
                await asyncio.sleep(_POLL_S)
            _check(await self._call_all("tta_commit", digest))
        except ExpertError:
            await self._call_all("tta_discard", digest)
            await self.unload(digest)
            raise

    async def unload(self, digest: str) -> bool:
        """Forget an expert.

        Returns whether it is gone everywhere: a worker that runs a request with it keeps it.
        """
        return all(await self._call_all("tta_unload", digest))

    async def install(
        self, heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules
    ) -> str:
        """Let requests be decided by these heads inside the pass.

        Args:
            heads: The policy's heads, whose names are those of experts.
            digests: The digest of each expert, by its name.
            rules: The rules by which the heads' scores become mixes.

        Returns:
            The policy's name on the wire.

        Raises:
            RouterError: A worker does not take the policy.
        """
        packed = pack_policy(heads, digests, rules)
        for refusal in await self._call_all("tta_install", *packed):
            if refusal is not None:
                raise RouterError(refusal)
        return packed.name

    async def count_used(self) -> Capacity:
        """Return how much of the capacity is taken, in the worker that keeps most."""
        return Capacity(*max(await self._call_all("tta_used")))

    async def slots(self) -> tuple[int, int]:
        """Return the slots in use, and the slots there are."""
        used, total = (await self._call_all("tta_slots"))[0]
        return used, total

    async def bytes(self) -> tuple[int, int]:
        """Return the bytes of the banks of the experts in use, and of one slot, in one worker."""
        bank, slot = (await self._call_all("tta_bytes"))[0]
        return bank, slot

    async def dense(self) -> tuple[int, int]:
        """Return the bytes of dense experts and clean copies, and the switches, in one worker."""
        nbytes, switches = (await self._call_all("tta_dense"))[0]
        return nbytes, switches

    async def probe_kinds(self) -> list[wire.ProbeKind]:
        """Return the kinds of probes that are observed."""
        return list((await self._call_all("tta_probe_kinds"))[0])

    async def take_probes(
        self, kind: wire.ProbeKind, probes: Sequence[int], tokens: Sequence[int]
    ) -> wire.ProbeResult | None:
        """Take what was observed of probes that were sent the same tokens; workers then forget it.

        It is None if the probes did not pass by as they were sent.
        """
        found = await self._call_all("tta_take_probes", kind, list(probes), list(tokens))
        packed = next((one for one in found if one is not None), None)
        if packed is None:
            return None

        result = wire.unpack(packed)
        assert isinstance(result, wire.ProbeResult)
        return result

    async def _call_all(self, method: str, *args: Any) -> list[Any]:
        return await self._rpc(method, timeout=_TIMEOUT_S, args=args)


def _check(refusals: Sequence[str | None]) -> None:
    for refusal in refusals:
        if refusal is not None:
            raise ExpertError(refusal)
