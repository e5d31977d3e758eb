"""From a replica's loggers to the process that writes the log.

A request waits for nothing: its line goes into a bounded queue, and a thread sends what is in it.
"""

import logging
import queue
import sys
import threading
from contextlib import suppress
from logging.handlers import DatagramHandler, QueueHandler, QueueListener

from tta_serve import metrics
from tta_serve.config.telemetry import LogConfig
from tta_serve.telemetry.line_limit import LineLimit
from tta_serve.telemetry.log_lines import make_formatter

_MOST_WAITING = 4096
_CLOSE_S = 2.0
_OURS = "tta_serve"
_OTHERS = ("ray.serve", "vllm", "uvicorn.error", "opentelemetry")
"""Loggers whose warnings and errors are written too; the first is that of our older parts."""


class LogSender:
    """Sends the lines of this process's loggers for as long as it is open."""

    def __init__(self, config: LogConfig, address: str | None) -> None:
        """Begin to send.

        Args:
            config: What is to be written, and how.
            address: Of the `LogWriter`; None for this process's own standard error.
        """
        level = logging.getLevelNamesMapping()[config.level.upper()]
        lines: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_WAITING)
        sink = logging.StreamHandler(sys.stderr) if address is None else _ToWriter(address)
        self._listener = QueueListener(lines, sink)
        self._handler = _Waiting(lines)
        self._handler.setFormatter(make_formatter(config))
        self._handler.addFilter(_OthersWarnings())
        self._handler.addFilter(LineLimit(config.most_alike))
        self._handler.setLevel(level)

        ours = logging.getLogger(_OURS)
        self._before = ours.level, ours.propagate
        ours.setLevel(level)
        ours.propagate = False
        for name in (_OURS, *_OTHERS):
            logging.getLogger(name).addHandler(self._handler)
        self._listener.start()

    def close(self) -> None:
        """Send what waits, and no more; a writer who does not write is not waited for."""
        for name in (_OURS, *_OTHERS):
            logging.getLogger(name).removeHandler(self._handler)
        ours = logging.getLogger(_OURS)
        ours.setLevel(self._before[0])
        ours.propagate = self._before[1]
        ending = threading.Thread(target=self._end, daemon=True)
        ending.start()
        ending.join(_CLOSE_S)

    def _end(self) -> None:
        with suppress(queue.Full):
            self._listener.stop()


class _OthersWarnings(logging.Filter):
    """Of what others log, lets their warnings and errors through alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] == _OURS


class _Waiting(QueueHandler):
    """Makes a line where it is logged, and leaves out what the queue has no room for."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            metrics.log_lines_left_out.labels("full").inc()


class _ToWriter(DatagramHandler):
    """Sends each line as one datagram to a socket of this machine."""

    def __init__(self, address: str) -> None:
        super().__init__(address, None)

    def makePickle(self, record: logging.LogRecord) -> bytes:
        return record.getMessage().encode(errors="replace")

    def handleError(self, record: logging.LogRecord) -> None:
        """The writer has ended, and this process with it."""
        metrics.log_lines_left_out.labels("unsent").inc()
