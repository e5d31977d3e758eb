"""Who is let into the engine: each key within its budget, all together within the room there is."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from tta_serve import metrics
from tta_serve.engine.client.usage import Usage
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import Caller

_LONGEST_RETRY_S = 60
_NEWEST = 0.1
"""What the newest sample counts in the time that samples stay."""


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

    Those that wait take turns: first tenants, then the requests of a tenant, then a request's
    prompts.
    """

    def __init__(
        self,
        room: int,
        most: int,
        most_each: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nobody inside.

        Args:
            room: Samples in the engine at once.
            most: Of all requests that are admitted.
            most_each: Of those of one tenant; None for `most`.
            clock: Seconds that only grow.
        """
        self._free = self._room = room
        self._most = most
        self._most_each = most if most_each is None else most_each
        self._clock = clock
        self._admitted: Counter[str | None] = Counter()  # by tenant
        self._lines: dict[str | None, deque[Admitted]] = {}  # by tenant, the next one first
        self._turns = 0  # samples of one turn of each request that is admitted
        self._stay_s = 0.0  # how long a sample is inside: lately, about

    def resize(self, most: int, most_each: int) -> None:
        """Admit so many from now on; those that were admitted stay.

        Args:
            most: Samples of all requests.
            most_each: Of those of one tenant.
        """
        self._most = most
        self._most_each = most_each

    @contextmanager
    def admit(
        self,
        samples: int,
        tenant: str | None = None,
        within_s: float = math.inf,
        prompts: int = 1,
    ) -> Iterator["Admitted"]:
        """Count a request in for as long as the block lasts.

        Args:
            samples: How many it asks for.
            tenant: Whose it is.
            within_s: Seconds after which nobody wants its answer any more.
            prompts: Of how many prompts they are, each of which goes in at a turn.

        Raises RequestError: 400 for a request that can never be admitted, 429 while there is no
        room for it, 503 if its turn would come too late.
        """
        if samples > self._most_each:
            raise RequestError(
                f"the request asks for {samples} answers (prompts times n); this server takes at"
                f" most {self._most_each} at once"
            )
        if self._admitted.total() + samples > self._most:
            raise self._turn_away("full", 429, "the server's queue is full; try again later")
        if self._admitted[tenant] + samples > self._most_each:
            message = "your requests fill their part of the server's queue; try again later"
            raise self._turn_away("tenant", 429, message)
        if (wait_s := self.estimate_wait(samples)) >= within_s:
            message = (
                f"the server is busy: this request would wait for about {wait_s:.1f} s, and is to"
                f" be answered within {within_s:.1f} s; try again later"
            )
            raise self._turn_away("deadline", 503, message)

        self._admitted[tenant] += samples
        self._turns += samples // prompts
        try:
            yield Admitted(self, tenant)
        finally:
            self._turns -= samples // prompts
            self._admitted[tenant] -= samples
            if not self._admitted[tenant]:
                del self._admitted[tenant]

    def estimate_wait(self, samples: int) -> float:
        """Return about how many seconds the last of so many samples would wait if they came now.

        All go in by roomfuls, before it one turn of each request that is there.
        """
        beyond = self._turns + samples - self._room
        return self._stay_s * max(beyond, 0) / self._room

    async def take(self, who: "Admitted", samples: int) -> None:
        """Wait for room for samples of an admitted request."""
        if not self._lines and self._free >= samples:
            self._free -= samples
            return
        entered = asyncio.get_running_loop().create_future()
        if not who.waiting:
            self._lines.setdefault(who.tenant, deque()).append(who)
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
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            who = line[0]
            entered, wanted = who.waiting[0]
            if not entered.cancelled():
                if wanted > self._free:
                    return
                self._free -= wanted
                entered.set_result(None)
            who.waiting.popleft()

            # The request goes to the end of its tenant's line, and that line behind all others.
            line.popleft()
            if who.waiting:
                line.append(who)
            del self._lines[tenant]
            if line:
                self._lines[tenant] = line

    @contextmanager
    def watch_stay(self) -> Iterator[None]:
        """Learn from the time that the block takes how long samples stay inside."""
        began = self._clock()
        ended = False
        try:
            yield
            ended = True
        finally:
            stay_s = self._clock() - began
            if ended or stay_s > self._stay_s:  # one that was cut off would have stayed longer
                self._stay_s += (stay_s - self._stay_s) * (_NEWEST if self._stay_s else 1)

    @property
    def room(self) -> int:
        """Samples in the engine at once."""
        return self._room

    def _turn_away(self, why: str, status: int, message: str) -> RequestError:
        metrics.turned_away.labels(why).inc()
        after = min(max(1, math.ceil(self.estimate_wait(0))), _LONGEST_RETRY_S)
        return RequestError(message, status=status, headers={"retry-after": str(after)})


class Admitted:
    """A request that was admitted.

    Attributes:
        tenant: Whose it is.
        waiting: Those of its prompts that wait for room, with their samples.
    """

    def __init__(self, admission: Admission, tenant: str | None) -> None:
        self._admission = admission
        self.tenant = tenant
        self.waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def room_for(self, samples: int) -> AsyncIterator[None]:
        """Wait for room in the engine, and have it for as long as the block lasts."""
        wanted = min(samples, self._admission.room)
        await self._admission.take(self, wanted)
        try:
            with self._admission.watch_stay():
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
