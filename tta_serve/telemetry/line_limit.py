"""No more than so many lines a second that are alike: a storm of refusals floods no disk."""

import logging
import threading
import time
from collections import Counter

from tta_serve import metrics

logger = logging.getLogger("tta_serve.log")

_PERIOD_S = 1.0


class LineLimit(logging.Filter):
    """Lets so many lines of a kind through in a second, and tells how many it left out.

    Requests that failed are of one kind by their error, and those whose client left are of one;
    warnings are, if one place in the code logs them. So there are no more kinds than errors and
    places. Requests that went well have all their lines: the engine bounds how many there are.
    """

    def __init__(self, most: int) -> None:
        """Begin with no line seen.

        Args:
            most: Lines of a kind in a second.
        """
        super().__init__()
        self._most = most
        self._period = 0
        self._seen: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is to be written."""
        kind = _find_kind(record)
        if kind is None:
            return True
        with self._lock:
            period = int(time.monotonic() / _PERIOD_S)
            if period != self._period:
                self._period = period
                self._seen.clear()
            self._seen[kind] += 1
            if self._seen[kind] <= self._most:
                return True
            self._leave_out(kind)
            return False

    def _leave_out(self, kind: str) -> None:
        metrics.log_lines_left_out.labels("alike").inc()
        self._left_out[kind] += 1
        if self._timer is None:
            self._timer = threading.Timer(_PERIOD_S, self._tell)
            self._timer.daemon = True
            self._timer.start()

    def _tell(self) -> None:
        with self._lock:
            left_out, self._left_out, self._timer = self._left_out, Counter(), None
        for kind, count in left_out.items():
            logger.warning("lines left out", extra={"of": kind, "left_out": count})


def _find_kind(record: logging.LogRecord) -> str | None:
    error: str | None = getattr(record, "error", None)
    if error is not None or getattr(record, "outcome", None) == "aborted":
        return error or "aborted"
    alarms = record.levelno >= logging.WARNING and record.name != logger.name
    return f"{record.module}:{record.lineno}" if alarms else None
