"""All replicas of the server, asked by one of them."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from tta_serve.exceptions import RequestError
from tta_serve.protocol import ConfigChange, ExpertChange
from tta_serve.serving.ray_private import NoAnswer, ask_replicas

_WAIT_S = 120.0


class Peers:
    """A replica and its fellows. A lone one is asked without Ray.

    Args:
        fewest: How many there are at least.
        most: How many there are at most.
    """

    def __init__(self, replica: Any, fewest: int, most: int) -> None:
        self._replica = replica
        self._fewest = fewest
        self._most = most

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Return what a method returns in each replica.

        Raises RequestError, 503, if not all replicas answer.
        """
        answers = await self._ask(method, args)
        found = [answer for answer in answers if not isinstance(answer, NoAnswer)]
        wanted = max(self._fewest, len(answers))
        if len(found) != wanted:
            raise RequestError(f"{len(found)} of {wanted} replicas answer; try again", status=503)
        return found

    async def ask_reachable(self, method: str, *args: Any) -> list[Any]:
        """Return what a method returns in the replicas that answer.

        One that starts or ends may not.
        """
        answers = await self._ask(method, args)
        return [answer for answer in answers if not isinstance(answer, NoAnswer)]

    async def _ask(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if self._most == 1:
            return [await getattr(self._replica, method)(*args)]
        try:
            async with asyncio.timeout(_WAIT_S):
                return await ask_replicas(method, args)
        except TimeoutError:
            raise RequestError("the replicas do not answer; try again", status=503) from None

    async def change(
        self,
        change: ExpertChange | ConfigChange,
        keep: Callable[[], Awaitable[None]] | None = None,
        *,
        dry_run: bool = False,
    ) -> None:
        """Change the experts or the config of all replicas, or of none.

        It is staged in every replica, under a name of its own, and committed only if none refuses;
        a replica refuses while the change of another is staged.

        Args:
            change: What is to change.
            keep: Writes the change down where replicas that start will look, before it is made.
            dry_run: Whether to make it in none, and only see whether one refuses.

        Raises RequestError.
        """
        name = secrets.token_hex(8)
        staged = False
        try:
            refusals = [
                refusal for refusal in await self.ask("stage", name, change) if refusal is not None
            ]
            if not refusals and not dry_run:
                if keep is not None:
                    await keep()
                staged = True
        finally:
            await (self.ask("commit", name) if staged else self.ask_reachable("discard", name))
        if refusals:
            raise refusals[0]
