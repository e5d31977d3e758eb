"""A collector of OpenTelemetry spans: it takes OTLP over HTTP, as real ones do."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.factories.http_handler import serve_handler


@dataclass(frozen=True)
class CollectedSpan:
    """A span that has come."""

    name: str
    trace: str
    id: str
    parent: str
    """The id of the span above it, empty for none."""
    failed: bool
    attributes: dict[str, Any]


@dataclass
class Collector:
    """What has come."""

    endpoint: str = ""
    spans: list[CollectedSpan] = field(default_factory=list)

    def wait_for(
        self, wanted: Callable[[CollectedSpan], bool], most_s: float = 15
    ) -> CollectedSpan:
        """Return the first span that is wanted, once it has come."""
        end = time.monotonic() + most_s
        while time.monotonic() < end:
            for span in [*self.spans]:
                if wanted(span):
                    return span
            time.sleep(0.05)
        raise AssertionError(f"it did not come, these did: {[span.name for span in self.spans]}")

    def take(self, body: bytes) -> None:
        """Keep the spans of one export."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {one.key: _value_of(one.value) for one in span.attributes}
                    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    failed = span.status.code == span.status.STATUS_CODE_ERROR
                    self.spans.append(CollectedSpan(span.name, *ids, failed, attributes))


def _value_of(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return [_value_of(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port of this machine."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nobody reads it."""

    with serve_handler(Handler) as url:
        collector.endpoint = f"{url}/v1/traces"
        yield collector
