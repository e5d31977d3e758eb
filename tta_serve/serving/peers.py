"""All replicas of the server, asked by one of them."""

import asyncio
import secrets
from typing import Any

from ray import serve
from ray.exceptions import RayError

from tta_serve.experts import Change
from tta_serve.protocol import RequestError
from tta_serve.serving.ray_private import broadcast

_WAIT_S = 120.0


class Peers:
    """A replica and its fellows. A lone one is asked without Ray."""

    def __init__(self, replica: Any, count: int) -> None:
        self._replica, self._count = replica, count
        self._handle: Any = None

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """What a method of the replica returns in each.

        Raises RequestError, 503, if not all replicas answer.
        """
        if self._count == 1:
            return [await getattr(self._replica, method)(*args)]
        if self._handle is None:
            context = serve.get_replica_context()
            self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            async with asyncio.timeout(_WAIT_S):
                found: list[Any] = await asyncio.to_thread(broadcast, self._handle, method, args)
        except (RayError, TimeoutError) as error:
            raise RequestError(f"not all replicas answer ({type(error).__name__}); try again", status=503) from None
        return found

    async def change(self, change: Change) -> None:
        """Change the experts of all replicas, or of none.

        It is staged in every replica, under a name of its own, and committed only if none refuses; a replica refuses while the
        change of another is staged. Raises RequestError.
        """
        name, staged = secrets.token_hex(8), False
        try:
            refusals = [refusal for refusal in await self.ask("stage", name, change) if refusal is not None]
            staged = not refusals
        finally:
            await self.ask("commit" if staged else "discard", name)
        if refusals:
            raise refusals[0]
