"""What a server says of itself beside `/metrics`: the lines of its log, and traces."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tta_serve.config.section import Section


class LogConfig(Section):
    """One line for each request, for each change, and for what goes wrong."""

    format: Literal["json", "text", "none"] = "json"
    """How a line is written; `none` for no lines."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written: `debug` adds the requests of health checks and scrapes, `warning`
    leaves out requests that did not fail by the server's fault."""
    file: Path | None = None
    """The file that lines go to; unset, the standard output of `tta serve`."""
    file_mib: int = Field(64, ge=1)
    """MiB at which the file is put aside as FILE.1, and begun anew."""
    files_kept: int = Field(4, ge=1)
    """How many files stay that were put aside."""
    most_alike: int = Field(10, ge=1)
    """Lines a second of one kind of refusal, warning or failure; what is beyond is counted in a
    line of its own."""
    prompts: bool = False
    """Whether the line of a request has its last user turn, redacted and cut. Answers are never
    written."""


class TracesConfig(Section):
    """Spans of requests, sent to an OpenTelemetry collector."""

    endpoint: str = Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")
    """Where the collector takes OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`. Headers
    for it come from the environment, `OTEL_EXPORTER_OTLP_HEADERS`."""
    sample: float = Field(1.0, ge=0, le=1)
    """The share of requests that are traced, of those whose client says nothing of it in
    `traceparent`."""
