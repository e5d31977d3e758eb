"""The experts that a worker keeps ready, and how they are read beside the running steps."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from adapters.errors import ExpertError
from tta_serve.engine.options import Capacity
from tta_serve.engine.worker.placed_expert import PlacedExpert

Read = TypeVar("Read")


class Resident(NamedTuple):
    """An expert that is kept ready, and what it takes of the capacity."""

    column: int
    """Its column of the coefficient table."""
    rank: int
    """The highest rank of its factors."""
    nbytes: int
    """The bytes of all that it consists of, on this worker."""
    low_rank: bool
    """Whether it consists of factors, which gating wants."""


class Residents:
    """Which expert, by digest, has which column of the table; a freed column serves again."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._by_digest: dict[str, Resident] = {}
        self._free = list(range(capacity.experts - 1, -1, -1))

    def add(self, digest: str, placed: PlacedExpert) -> int:
        """Give an expert a column.

        Raises:
            ExpertError: It goes beyond the capacity.
        """
        assert digest not in self._by_digest
        rank, nbytes = placed.rank, placed.nbytes
        self._check("experts", len(self._by_digest), 1)
        self._check("ranks", sum(r.rank for r in self._by_digest.values()), rank)
        self._check("bytes", sum(r.nbytes for r in self._by_digest.values()), nbytes)

        column = self._free.pop()
        self._by_digest[digest] = Resident(column, rank, nbytes, low_rank=rank > 0)
        return column

    def remove(self, digest: str) -> int:
        """Forget an expert. Returns the column that is free now."""
        column = self._by_digest.pop(digest).column
        self._free.append(column)
        return column

    def column(self, digest: str) -> int:
        """Return the column of an expert that is kept ready."""
        return self._by_digest[digest].column

    def is_low_rank(self, digest: str) -> bool:
        """Whether an expert that is kept ready consists of factors."""
        return self._by_digest[digest].low_rank

    def find_column(self, digest: str) -> int | None:
        """Return the column of an expert, None if it is not kept ready."""
        resident = self._by_digest.get(digest)
        return None if resident is None else resident.column

    def count_used(self) -> Capacity:
        """Return how much of the capacity is taken."""
        residents = self._by_digest.values()
        return Capacity(
            len(residents), sum(r.rank for r in residents), sum(r.nbytes for r in residents)
        )

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    def _check(self, what: str, taken: int, more: int) -> None:
        limit: int = getattr(self.capacity, what)
        if taken + more > limit:
            raise ExpertError(
                f"no room: {taken} {what} are taken, this needs {more} more, the capacity is"
                f" {limit}; unload an expert or raise library.capacity.{what}"
            )


class ExpertReader(Generic[Read]):
    """Reads experts in a thread of the lowest priority, so that steps go on meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "tta-reader", initializer=_step_aside)
        self._running: dict[str, Future[Read]] = {}

    def start(self, digest: str, read: Callable[[], Read]) -> None:
        """Begin to read an expert."""
        self._running[digest] = self._pool.submit(read)

    def is_done(self, digest: str) -> bool:
        """Whether an expert has been read, or could not be."""
        return self._running[digest].done()

    def take(self, digest: str) -> Read:
        """Return what was read, and forget it.

        Raises:
            ExpertError: As the reading did.
        """
        return self._running.pop(digest).result()

    def forget(self, digest: str) -> None:
        """Drop what was read or is being read."""
        found = self._running.pop(digest, None)
        if found is not None:
            found.cancel()


def _step_aside() -> None:
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
