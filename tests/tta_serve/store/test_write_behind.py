"""The log: what is put arrives, once, without anybody waiting; what cannot is counted."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.factories.exposures import exposure, read_exposures
from tta_serve.store import exposures
from tta_serve.store.database import Database
from tta_serve.store.records import Span
from tta_serve.store.write_behind import ExposureLog, Log


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


class Sink:
    """A place to write to that can be shut, or refuse some items."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.tries = 0
        self.open = threading.Event()
        self.open.set()
        self.broken = False
        self.refused: set[int] = set()

    def __call__(self, items: list[int]) -> None:
        self.tries += 1
        self.open.wait()
        if self.broken or self.refused & set(items):
            raise OSError("no room")
        self.batches.append(list(items))

    @property
    def items(self) -> list[int]:
        return [item for batch in self.batches for item in batch]


def test_a_graceful_stop_loses_nothing(db: Database) -> None:
    log = ExposureLog(lambda rows: exposures.write(db, rows), flush_s=0.05, batch=100)

    def traffic(worker: int) -> None:
        for i in range(500):
            log.put(exposure(request_id=f"{worker}-{i}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(traffic, range(4)))
    log.close(timeout=30)
    assert log.dropped == len(log) == 0
    found = {row.request_id for row, _ in read_exposures(db, Span("routing"), "total_ms")}
    assert found == {f"{worker}-{i}" for worker in range(4) for i in range(500)}


def test_items_wait_for_the_interval_or_for_a_full_batch() -> None:
    sink = Sink()
    log = Log(sink, flush_s=0.3, batch=3)
    log.put(0)
    time.sleep(0.1)
    assert sink.batches == []
    _until(lambda: sink.batches == [[0]])
    slow = Log(sink, flush_s=60, batch=3)
    for i in range(1, 5):
        slow.put(i)
    _until(lambda: sink.batches[1:] == [[1, 2, 3]])
    assert len(slow) == 1
    slow.close(5)
    assert sink.items == [0, 1, 2, 3, 4]
    log.close(5)


def test_an_idle_log_writes_nothing() -> None:
    sink = Sink()
    log = Log(sink, flush_s=0.01)
    time.sleep(0.1)
    log.close(5)
    assert sink.tries == 0


def test_nobody_waits_for_a_stuck_write_and_the_newest_are_dropped() -> None:
    sink = Sink()
    sink.open.clear()
    log = Log(sink, most=10, flush_s=0.01, batch=5)
    log.put(0)
    _until(lambda: sink.tries == 1)
    for i in range(1, 16):
        log.put(i)  # One that waited would wait for ever: nobody opens the sink.
    assert (len(log), log.dropped) == (11, 5)
    sink.open.set()
    log.close(10)
    assert sink.items == list(range(11))
    assert log.dropped == 5


def test_a_failing_write_is_tried_again_until_it_succeeds() -> None:
    sink = Sink()
    sink.broken = True
    log = Log(sink, flush_s=0.01, batch=5)
    for i in range(12):
        log.put(i)
    _until(lambda: sink.tries >= 3)
    sink.broken = False
    log.close(10)
    assert sink.items == list(range(12))
    assert log.dropped == 0


def test_pauses_between_tries_grow() -> None:
    sink = Sink()
    sink.broken = True
    log = Log(sink, flush_s=0.001)
    log.put(0)
    time.sleep(1.7)
    assert 3 <= sink.tries <= 6  # at 0, 0.05, 0.15, 0.35, 0.75, 1.55 s, and then 3.15 s
    sink.broken = False
    start = time.monotonic()
    log.close(10)  # does not wait for the end of a pause
    assert time.monotonic() - start < 1
    assert sink.items == [0]


def test_a_batch_that_can_never_be_written_does_not_stop_the_log_for_ever() -> None:
    sink = Sink()
    sink.refused = {1}
    log = Log(sink, most=4, flush_s=0.01, batch=2)
    for i in range(3):
        log.put(i)
    _until(lambda: sink.tries >= 2)
    assert log.dropped == 0
    while log.dropped == 0:  # the queue fills
        log.put(3)
        time.sleep(0.001)
    _until(lambda: sink.batches != [])
    log.close(10)
    assert sink.items[0] == 2
    assert 1 not in sink.items


def test_every_item_is_written_or_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tta_serve")
    sink = Sink()
    log = Log(sink, most=50, flush_s=0.001, batch=10)
    for i in range(3000):
        if i % 500 == 0:
            sink.broken = not sink.broken
        log.put(i)
        if i % 20 == 0:
            time.sleep(0.002)
    sink.broken = False
    log.close(10)
    assert sink.items == sorted(set(sink.items))
    assert 0 < log.dropped == 3000 - len(sink.items)
    assert "items of a log wait to be written: OSError: no room" in caplog.text


@pytest.mark.parametrize("stuck", [True, False])
def test_closing_ends_in_time_and_counts_what_is_left(stuck: bool) -> None:
    sink = Sink()
    sink.broken = True
    if stuck:
        sink.open.clear()
    log = Log(sink, flush_s=0.01, batch=5)
    for i in range(12):
        log.put(i)
    _until(lambda: sink.tries >= 1)
    log.close(0.3)  # One that waited for the sink would wait for ever.
    log.put(12)
    assert (len(log), log.dropped) == (0, 13)
    sink.open.set()
    log._thread.join(5)
    assert not log._thread.is_alive()
    assert (sink.items, log.dropped) == ([], 13)
