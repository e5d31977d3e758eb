"""A process that is killed in the middle of traffic."""

import subprocess
import sys
import time

from sqlalchemy import text

from tests.factories.exposures import read_exposures
from tta_serve.store.database import Database
from tta_serve.store.records import Span

FLUSH_S = 0.3
WRITE_S = 0.5  # more than a write takes on a busy machine


def test_a_crash_loses_at_most_one_interval_and_leaves_a_sound_database(url: str) -> None:
    child = [sys.executable, "-m", "tests.tta_serve.store.crash_child", url, str(FLUSH_S)]
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        put = [process.stdout.readline()]
        end = time.monotonic() + 5 * FLUSH_S
        while time.monotonic() < end:
            put.append(process.stdout.readline())
        process.kill()
        put += process.stdout.readlines()
    times = [float(line.split()[1]) for line in put if line.endswith("\n")]
    db = Database(url)
    found = [row for row, _ in read_exposures(db, Span("routing"), "total_ms")]
    assert [row.request_id for row in found] == [str(i) for i in range(len(found))]
    assert [row.time for row in found] == times[: len(found)]
    lost = [moment for moment in times[len(found) :] if moment < times[-1] - FLUSH_S - WRITE_S]
    assert lost == []
    assert len(found) > 100
    if db.is_sqlite:
        with db.read() as connection:
            assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    db.close()
