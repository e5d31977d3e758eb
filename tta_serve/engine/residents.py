"""The experts that a worker keeps ready: read beside the running steps, within a capacity, each with a column of the table."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from adapters.errors import ExpertError
from tta_serve.engine.attach import Placed
from tta_serve.engine.options import Capacity


class Resident(NamedTuple):
    """column: of the coefficient table   rank: the highest of its factors   nbytes: of all of them, on this worker"""

    column: int
    rank: int
    nbytes: int


class Residents:
    """Which expert, by digest, has which column; a freed column serves again."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._by_digest: dict[str, Resident] = {}
        self._free = list(range(capacity.experts - 1, -1, -1))

    def add(self, digest: str, placed: Placed) -> int:
        """Give an expert a column. Raises ExpertError if it goes beyond the capacity."""
        assert digest not in self._by_digest
        shares = *placed.shares.values(), *placed.gated.values()
        factors = [factor for weights in shares for factor in weights if factor is not None]
        rank, nbytes = max((f.rank for f in factors), default=0), sum(f.a.nbytes + f.b.nbytes for f in factors)
        self._check("experts", len(self._by_digest), 1)
        self._check("ranks", sum(r.rank for r in self._by_digest.values()), rank)
        self._check("bytes", sum(r.nbytes for r in self._by_digest.values()), nbytes)
        column = self._free.pop()
        self._by_digest[digest] = Resident(column, rank, nbytes)
        return column

    def remove(self, digest: str) -> int:
        """Returns the column that is free now."""
        column = self._by_digest.pop(digest).column
        self._free.append(column)
        return column

    def column(self, digest: str) -> int:
        return self._by_digest[digest].column

    def used(self) -> Capacity:
        """How much of the capacity is taken."""
        residents = self._by_digest.values()
        return Capacity(len(residents), sum(r.rank for r in residents), sum(r.nbytes for r in residents))

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    def _check(self, what: str, taken: int, more: int) -> None:
        limit: int = getattr(self.capacity, what)
        if taken + more > limit:
            raise ExpertError(
                f"no room: {taken} {what} are taken, this needs {more} more, the capacity is {limit}; "
                f"unload an expert or raise library.capacity.{what}"
            )


class Reader:
    """Reads experts in a thread of the lowest priority, so that steps go on meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "tta-reader", initializer=_step_aside)
        self._running: dict[str, Future[Placed]] = {}

    def start(self, digest: str, read: Callable[[], Placed]) -> None:
        self._running[digest] = self._pool.submit(read)

    def done(self, digest: str) -> bool:
        return self._running[digest].done()

    def take(self, digest: str) -> Placed:
        """What was read, and forget it. Raises ExpertError as the reading did."""
        return self._running.pop(digest).result()

    def forget(self, digest: str) -> None:
        """Drop what was read or is being read."""
        found = self._running.pop(digest, None)
        if found is not None:
            found.cancel()


def _step_aside() -> None:
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
