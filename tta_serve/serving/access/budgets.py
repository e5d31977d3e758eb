"""How much each key may ask for: requests and tokens a minute, and requests at once."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from tta_serve import metrics
from tta_serve.engine.client.usage import Usage
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import Caller


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


def _refuse(label: str, why: str, limit: str, wait: float) -> RequestError:
    metrics.refused.labels(label, why).inc()
    return RequestError(
        f"the key {label!r} has reached its limit of {limit}",
        status=429,
        headers={"retry-after": str(max(1, math.ceil(wait)))},
    )
