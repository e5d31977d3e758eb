"""Who is let into the engine.

A bounded number of samples is inside at once, requests take turns, and a bounded number waits.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tta_serve.exceptions import RequestError

_RETRY_AFTER_S = "1"


class Admission:
    """Counts samples: a request with 10 prompts and n = 2 is 20.

    Args:
        room: Samples in the engine at once.
        most: Of all requests that are admitted.
    """

    def __init__(self, room: int, most: int) -> None:
        self._free = self._room = room
        self._most = most
        self._admitted = 0
        self._turns: deque[Admitted] = deque()

    @contextmanager
    def admit(self, samples: int) -> Iterator["Admitted"]:
        """Count a request in for as long as the block lasts.

        Raises RequestError: 400 for a request that can never be admitted, 429 while there is no
        room for it.
        """
        if samples > self._most:
            raise RequestError(
                f"the request asks for {samples} answers (prompts times n); this server takes at"
                f" most {self._most} at once"
            )
        if self._admitted + samples > self._most:
            message = "the server's queue is full; try again later"
            raise RequestError(message, status=429, headers={"retry-after": _RETRY_AFTER_S})
        self._admitted += samples
        try:
            yield Admitted(self)
        finally:
            self._admitted -= samples

    async def take(self, who: "Admitted", samples: int) -> None:
        if not self._turns and self._free >= samples:
            self._free -= samples
            return
        entered = asyncio.get_running_loop().create_future()
        if not who.waiting:
            self._turns.append(who)
        who.waiting.append((entered, samples))
        try:
            await entered
        except asyncio.CancelledError:
            self.give(samples if entered.done() and not entered.cancelled() else 0)
            raise

    def give(self, samples: int) -> None:
        """Take back the room of samples that have left the engine.

        The next request in turn sends as many as there is room for.
        """
        self._free += samples
        while self._turns:
            who = self._turns[0]
            entered, wanted = who.waiting[0]
            if entered.cancelled():
                who.waiting.popleft()
            elif wanted <= self._free:
                who.waiting.popleft()
                self._free -= wanted
                entered.set_result(None)
            else:
                return
            self._turns.popleft()
            if who.waiting:
                self._turns.append(who)

    @property
    def room(self) -> int:
        return self._room


class Admitted:
    """A request that was admitted.

    Attributes:
        waiting: Those of its prompts that wait for room, with their samples.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def room_for(self, samples: int) -> AsyncIterator[None]:
        """Wait for room in the engine, and have it for as long as the block lasts."""
        wanted = min(samples, self._admission.room)
        await self._admission.take(self, wanted)
        try:
            yield
        finally:
            self._admission.give(wanted)
