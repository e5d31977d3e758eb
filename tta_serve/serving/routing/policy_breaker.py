"""Policies that fail again and again are left alone for a while."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FAILURES = 5
"""How many in a row it takes."""
PAUSE_S = 10.0
"""How long a policy is left alone, after which one request tries it."""


class PausedError(Exception):
    """A policy is left alone."""


class PolicyBreaker:
    """Knows whether a policy is worth asking.

    After `FAILURES` failures in a row nobody asks it for `PAUSE_S` seconds; then the next request
    does, while others still do not, and what becomes of that decides.

    Args:
        count: Called whenever a pause begins.
        clock: Seconds that only grow.
    """

    def __init__(
        self, count: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._clock = clock
        self._failures = 0
        self._paused_until = 0.0

    @contextmanager
    def watch(self, *failures: type[Exception]) -> Iterator[None]:
        """Let the block ask the policy, and learn from how it ends.

        Args:
            failures: The exceptions that say that the policy failed. Any other, such as that of a
                client that leaves, says nothing of it.

        Raises PausedError while the policy is left alone.
        """
        now = self._clock()
        if self._failures >= FAILURES:
            if now < self._paused_until:
                raise PausedError(f"it failed {self._failures} times in a row, and is left alone")
            self._paused_until = now + PAUSE_S  # for all others; this one tries it
        try:
            yield
        except failures:
            self._failures += 1
            if self._failures >= FAILURES:
                self._paused_until = self._clock() + PAUSE_S
                self._count()
            raise
        self._failures = 0
