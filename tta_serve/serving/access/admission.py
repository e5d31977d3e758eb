"""Who is let into the engine: each key within its budget, all together within the room there is."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from tta_serve import metrics
from tta_serve.engine.client.usage import Usage
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import Caller

_RETRY_AFTER_S = "1"


class Budgets:
    """What keys have used in the last minute, in this replica.

    Args:
        replicas: How many share the work: each gives a key its part of what it may ask a minute.
    """

    def __init__(self, replicas: int = 1) -> None:
        self._replicas = replicas
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    @contextmanager
    def admit(self, caller: Caller, usage: Usage) -> Iterator[None]:
        """Count a request in for as long as the block lasts, and its tokens at the end.

        Tokens are known when they have been computed: a key that has used up its tokens is refused
        until enough of them are a minute old.

        Args:
            caller: Who sends it.
            usage: What it takes, filled meanwhile.

        Raises RequestError, 429, with the seconds until it is worth trying again.
        """
        if caller.label is None:
            yield
            return
        label, rights = caller.label, caller.rights
        if rights.at_once is not None and self._running[label] >= rights.at_once:
            raise _refuse(label, "at_once", f"{rights.at_once} requests at once", 1)
        tokens = self._per_minute(rights.tokens_per_minute)
        if tokens is not None and not self._limiter.test(tokens, "tokens", label):
            wait = self._until(tokens, "tokens", label)
            raise _refuse(label, "tokens", f"{rights.tokens_per_minute} tokens a minute", wait)
        requests = self._per_minute(rights.requests_per_minute)
        if requests is not None and not self._limiter.hit(requests, "requests", label):
            wait = self._until(requests, "requests", label)
            raise _refuse(
                label, "requests", f"{rights.requests_per_minute} requests a minute", wait
            )

        self._running[label] += 1
        try:
            yield
        finally:
            self._running[label] -= 1
            used = usage.prompt_tokens + usage.completion_tokens
            if tokens is not None and used:
                self._spend(tokens, label, used)

    def _spend(self, tokens: RateLimitItem, label: str, used: int) -> None:
        """Take tokens off a key's minute: all that are left, if it used more."""
        left = self._limiter.get_window_stats(tokens, "tokens", label).remaining
        if cost := min(used, left):
            self._limiter.hit(tokens, "tokens", label, cost=cost)

    def _per_minute(self, amount: int | None) -> RateLimitItem | None:
        if amount is None:
            return None
        return RateLimitItemPerMinute(math.ceil(amount / self._replicas))

    def _until(self, item: RateLimitItem, what: str, label: str) -> float:
        return self._limiter.get_window_stats(item, what, label).reset_time - time.time()


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


def _refuse(label: str, why: str, limit: str, wait: float) -> RequestError:
    metrics.refused.labels(label, why).inc()
    return RequestError(
        f"the key {label!r} has reached its limit of {limit}",
        status=429,
        headers={"retry-after": str(max(1, math.ceil(wait)))},
    )
