"""A log that requests write to without waiting.

It is a bounded queue, and a thread that empties it into the database.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from tta_serve.store.records import Exposure

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0

T = TypeVar("T")


class Log(Generic[T]):
    """A queue whose items are written in batches by a thread of its own.

    What is put is written within `flush_s` seconds, or as soon as `batch` items wait; a crash loses
    what is not written. A failing write is tried again, after pauses that grow, while the queue can
    take what comes meanwhile. Once it is full, the newest items are dropped; so is the batch that
    fails, since it may be the reason. `dropped` counts both.
    """

    def __init__(
        self,
        write: Callable[[list[T]], None],
        most: int = 10_000,
        flush_s: float = 1.0,
        batch: int = 500,
    ) -> None:
        """Start the thread.

        Args:
            write: Writes all of a batch or nothing. It may raise, and may get a batch again.
            most: How many items may wait.
            flush_s: How long an item waits at most, in seconds, while writes do not fail.
            batch: The most items of one write.
        """
        assert 0 < batch <= most, "a full queue is at least one batch"
        self._write = write
        self._most = most
        self._flush_s = flush_s
        self._batch = batch
        self._lock = threading.Lock()
        self._queue: deque[T] = deque()
        self._writing: list[T] = []
        self._dropped = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = math.inf  # of closing
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Add an item, in constant time, without waiting for a write and without ever raising."""
        with self._lock:
            waiting = len(self._queue)
            if waiting >= self._most or self._closing.is_set():
                self._dropped += 1
                return
            self._queue.append(item)
        if waiting + 1 == self._batch:
            self._wake.set()

    def __len__(self) -> int:
        """How many items wait, those being written included."""
        return len(self._queue) + len(self._writing)

    @property
    def dropped(self) -> int:
        """How many items were put and are not known to be written, nor ever will be."""
        return self._dropped

    def close(self, timeout: float) -> None:
        """Write everything and end the thread.

        What is not written after `timeout` seconds is dropped, as is what is put from now on.
        """
        self._deadline = time.monotonic() + timeout
        with self._lock:
            self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        with self._lock:
            self._dropped += len(self)
            self._queue.clear()
            self._writing = []

    def _run(self) -> None:
        while self._queue or not self._closing.is_set():
            if len(self._queue) < self._batch and not self._closing.is_set():
                self._wake.wait(self._flush_s)
            self._wake.clear()
            self._flush()

    def _flush(self) -> None:
        """Write one batch of the oldest items, if there are any."""
        with self._lock:
            size = min(self._batch, len(self._queue))
            items = self._writing = [self._queue.popleft() for _ in range(size)]
        lost = bool(items) and not self._try_to_write(items)
        with self._lock:
            self._dropped += len(self._writing) if lost else 0
            self._writing = []

    def _try_to_write(self, items: list[T]) -> bool:
        """Write some items, sooner or later, and return whether that could be done."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                self._write(items)
            except Exception as error:
                kind = type(error).__name__
                logger.warning(
                    "%d items of a log wait to be written: %s: %s", len(self), kind, error
                )
            else:
                return True
            if time.monotonic() >= self._deadline or len(self._queue) >= self._most:
                logger.error("%d items of a log are lost", len(items))
                return False
            if self._closing.wait(pause):  # which ends a long pause early
                time.sleep(_FIRST_PAUSE_S)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


ExposureLog = Log[Exposure]
