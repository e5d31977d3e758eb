"""The process that writes the log: it takes the lines of all replicas, one a datagram.

Ray keeps what its actors print in files of its own. So lines of replicas come by a socket of this
machine to the process that the operator started, whose standard output is what he reads.
"""

import logging
import socket
import sys
import tempfile
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path

from tta_serve.config.telemetry import LogConfig
from tta_serve.exceptions import ConfigError

_MOST_BYTES = 1 << 18
_MIB = 1 << 20
_END = b""
_CLOSE_S = 2.0


class LogWriter:
    """Writes what comes for as long as the block lasts."""

    def __init__(self, config: LogConfig) -> None:
        """Raises ConfigError for a file that cannot be written."""
        self._sink = _open_sink(config)
        self._folder = tempfile.TemporaryDirectory(prefix="tta-log-")
        self.address = str(Path(self._folder.name) / "socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._write, name="tta-log", daemon=True)

    def __enter__(self) -> "LogWriter":
        self._socket.bind(self.address)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Write what has come; a reader who does not read is not waited for."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.settimeout(_CLOSE_S)
            try:
                last.sendto(_END, self.address)
            except TimeoutError:
                return
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._socket.close()
            self._sink.close()
        self._folder.cleanup()

    def _write(self) -> None:
        while line := self._socket.recv(_MOST_BYTES):
            text = line.decode(errors="replace")
            self._sink.handle(logging.LogRecord("", logging.INFO, "", 0, text, None, None))


def _open_sink(config: LogConfig) -> logging.Handler:
    if config.file is None:
        return logging.StreamHandler(sys.stdout)
    try:
        return RotatingFileHandler(
            config.file,
            maxBytes=config.file_mib * _MIB,
            backupCount=config.files_kept,
            encoding="utf-8",
        )
    except OSError as error:
        raise ConfigError(f"server.log.file: {config.file}: {error.strerror}") from None
