"""How a line of the log looks: one JSON object, or words; always one line, never a long one."""

import json
import logging
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from tta_serve.config.telemetry import LogConfig
from tta_serve.telemetry.request_summary import REQUEST_ID

_MOST_VALUE = 8192
_NAMES = {"levelname": "level", "message": "event", "name": "logger", "exc_info": "traceback"}


class JsonLines(JsonFormatter):
    """A line as a JSON object: time, level, event, and whatever else is known."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "message", "name", "process"],
            rename_fields=_NAMES,
            timestamp="time",
            json_ensure_ascii=False,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Return what is written, each text of it cut at its beginning, where it is too long."""
        request_id = REQUEST_ID.get()
        if request_id is not None:
            log_data.setdefault("request_id", request_id)
        log_data = {"time": log_data.pop("time"), **log_data}
        return {
            name: value[-_MOST_VALUE:] if isinstance(value, str) else value
            for name, value in log_data.items()
        }


class TextLines(JsonLines):
    """A line in words: time, level, event, then each value under its name."""

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return the line; a value is as JSON has it, so that none breaks the line."""
        told = dict(log_data)
        head = [str(told.pop(name)) for name in ("time", "level", "event")]
        pairs = (f"{name}={json.dumps(value, default=str)}" for name, value in told.items())
        return " ".join([*head, *pairs]).replace("\n", "\\n")


def make_formatter(config: LogConfig) -> logging.Formatter:
    """Return what makes a line in the form that a config asks for."""
    return TextLines() if config.format == "text" else JsonLines()
