"""The methods of `worker.WorkerExtension`, asked of all workers of an engine."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from adapters.errors import ExpertError
from adapters.mix import MixRules
from router.inline import Head
from router.policy import RouterError
from tta_serve.engine.heads import pack
from tta_serve.engine.options import Capacity
from tta_serve.engine.wire import Kind

_POLL_S = 0.02
_TIMEOUT_S = 30.0


class Workers:
    """rpc: `collective_rpc` of vLLM's asynchronous engine."""

    def __init__(self, rpc: Callable[..., Awaitable[list[Any]]]) -> None:
        self._rpc = rpc

    async def load(self, name: str, digest: str) -> None:
        """Keep an expert of the library ready; requests run on while it is read.

        Raises ExpertError if a worker refuses it, and then none keeps it.
        """
        try:
            _check(await self._all("tta_prepare", name, digest))
            while not all(await self._all("tta_prepared", digest)):
                await asyncio.sleep(_POLL_S)
            _check(await self._all("tta_commit", digest))
        except ExpertError:
            await self._all("tta_discard", digest)
            await self.unload(digest)
            raise

    async def unload(self, digest: str) -> bool:
        """Forget an expert. Returns whether it is gone everywhere: a worker that runs a request with it keeps it."""
        return all(await self._all("tta_unload", digest))

    async def install(self, heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules) -> str:
        """Let requests be decided by these heads inside the pass. Returns the name of the policy for the wire.

        digests: of the experts. Raises RouterError if an engine does not take it.
        """
        policy, settings, data = pack(heads, digests, rules)
        for refusal in await self._all("tta_install", policy, settings, data):
            if refusal is not None:
                raise RouterError(refusal)
        return policy

    async def used(self) -> Capacity:
        """How much of the capacity is taken, in the worker that keeps most."""
        return Capacity(*max(await self._all("tta_used")))

    async def slots(self) -> tuple[int, int]:
        """Slots in use, and slots."""
        used, total = (await self._all("tta_slots"))[0]
        return used, total

    async def bytes(self) -> tuple[int, int]:
        """Bytes of the banks of the experts in use, and of one slot, in one worker."""
        bank, slot = (await self._all("tta_bytes"))[0]
        return bank, slot

    async def probe_kinds(self) -> list[str]:
        """The kinds of probes that are observed."""
        return list((await self._all("tta_probe_kinds"))[0])

    async def take_probes(self, kind: Kind, probes: Sequence[int], tokens: Sequence[int]) -> Any:
        """What was observed of probes of the same tokens, and forget it; None if they did not pass by as they were sent."""
        found = await self._all("tta_take_probes", kind, list(probes), list(tokens))
        return next((one for one in found if one is not None), None)

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self._rpc(method, timeout=_TIMEOUT_S, args=args)


def _check(refusals: Sequence[str | None]) -> None:
    for refusal in refusals:
        if refusal is not None:
            raise ExpertError(refusal)
