"""Traffic that does not end: puts exposures in a log and prints each one's number and time.

Arguments: URL, flush interval.
"""

import itertools
import sys
import time

from tests.factories.exposures import exposure
from tta_serve.store import exposures
from tta_serve.store.database import Database
from tta_serve.store.write_behind import ExposureLog

if __name__ == "__main__":
    db = Database(sys.argv[1])
    log = ExposureLog(
        lambda rows: exposures.write(db, rows), flush_s=float(sys.argv[2]), batch=10_000
    )
    for i in itertools.count():
        now = time.time()
        log.put(exposure(request_id=str(i), time=now))
        print(i, now, flush=True)
        time.sleep(0.002)
