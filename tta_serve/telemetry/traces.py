"""Spans of requests, sent to a collector: request -> route -> probe, request -> engine.

A request's span follows the conventions of OpenTelemetry for generative AI, with what is ours under
`tta.`; none has any text of a prompt or an answer. vLLM makes a span of its own below `engine`.

Without a collector, a client's `traceparent` is still passed on to vLLM, and said in the log.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tta_serve.config.telemetry import TracesConfig
from tta_serve.protocol import MergeInfo
from tta_serve.telemetry.request_summary import RequestSummary

EXPORT_TIMEOUT_S = 5
"""How long a collector is waited for, in a thread that nobody waits for."""
_MOST_WAITING = 2048
_PAUSE_MS = 1000
_CLOSE_S = 2.0
_MOST_NUMBER = 1 << 53
_NAME = "tta-serve"
_PROPAGATOR = TraceContextTextMapPropagator()


class _Current:
    """What makes the spans of this process."""

    tracer: Tracer = NoOpTracer()


class TraceExport:
    """Makes the spans of this process, and sends them, until it is closed.

    They wait in a bounded queue: while the collector does not answer the oldest are dropped.
    """

    def __init__(self, config: TracesConfig) -> None:
        """Begin to make spans."""
        resource = Resource.create({"service.name": _NAME, "service.version": version(_NAME)})
        sampler = ParentBased(TraceIdRatioBased(config.sample))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(config.endpoint, timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, _MOST_WAITING, schedule_delay_millis=_PAUSE_MS)
        )
        _Current.tracer = self._provider.get_tracer(_NAME)

    def close(self) -> None:
        """Send what waits; a collector that does not answer is not waited for."""
        _Current.tracer = NoOpTracer()
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_S)


@contextmanager
def trace_request(
    summary: RequestSummary, headers: Mapping[str, str], body: Mapping[str, Any]
) -> Iterator[None]:
    """Trace a request for as long as the block lasts, below its client's span if it names one.

    Args:
        summary: What is known of it, filled by the block.
        headers: Its own, by lower-case name.
        body: What it asks.
    """
    operation = _name_operation(summary.path)
    with _Current.tracer.start_as_current_span(
        operation,
        _PROPAGATOR.extract(headers),
        SpanKind.SERVER,
        start_time=time.time_ns() - round(1e9 * (time.perf_counter() - summary.began)),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        if (context := span.get_span_context()).is_valid:
            summary.trace_id = trace.format_trace_id(context.trace_id)
        try:
            yield
        finally:
            if span.is_recording():
                _describe_request(span, operation, summary, body)


def trace_step(name: str, **attributes: str) -> AbstractContextManager[Span]:
    """Trace a step of a request for as long as the block lasts.

    Args:
        name: Of the step.
        attributes: What is known of it, each named without `tta.`.
    """
    own = {f"tta.{key}": value for key, value in attributes.items()}
    return _Current.tracer.start_as_current_span(
        name, attributes=own, record_exception=False, set_status_on_exception=False
    )


@contextmanager
def trace_engine() -> Iterator[dict[str, str]]:
    """Trace what the engine does, and yield the headers by which vLLM makes its span below.

    The span is not the current one of the block: that may be a generator, whose end comes in
    another context than its beginning.
    """
    span = _Current.tracer.start_span("engine")
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, trace.set_span_in_context(span))
    try:
        yield headers
    except Exception as error:
        span.set_attribute("error.type", type(error).__name__)
        raise
    finally:
        span.end()


def describe_merge(info: MergeInfo) -> dict[str, str | bool | float]:
    """Return what spans say of a decision."""
    said = {
        "tta.policy": info.policy,
        "tta.arm": info.arm,
        "tta.mix": info.mix,
        "tta.experts": json.dumps(info.model_dump(mode="json")["experts"]),
        "tta.abstained": info.abstained,
        "tta.kept": info.kept,
        "tta.fallback": info.fallback,
        "tta.router_seconds": info.router_ms / 1000,
    }
    return {name: value for name, value in said.items() if value is not None}


def _describe_request(
    span: Span, operation: str, summary: RequestSummary, body: Mapping[str, Any]
) -> None:
    if summary.policy is not None:  # else the model may be anything
        span.update_name(f"{operation} {summary.model or 'auto'}")
    usage = summary.usage
    said: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _NAME,
        "gen_ai.request.model": summary.model,
        "http.response.status_code": summary.status,
        "error.type": summary.error or (summary.outcome if summary.outcome != "ok" else None),
        "tta.request_id": summary.id,
        "tta.tenant": summary.tenant,
        "tta.policy": summary.policy,
    }
    for name, kind in (("max_tokens", int), ("temperature", float), ("top_p", float)):
        given = body.get(name)
        if isinstance(given, (int, float)) and abs(given) < _MOST_NUMBER:
            said[f"gen_ai.request.{name}"] = kind(given)
    if usage is not None and usage.first is not None:
        said["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        said["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        said["gen_ai.usage.output_tokens"] = usage.completion_tokens
        said["gen_ai.response.finish_reasons"] = [usage.finish_reason or "error"]
        said["gen_ai.response.time_to_first_chunk"] = usage.first - summary.began
    if summary.info is not None:
        said |= describe_merge(summary.info)
    span.set_attributes({name: value for name, value in said.items() if value is not None})
    if said["error.type"] is not None:
        span.set_status(StatusCode.ERROR)


def _name_operation(path: str) -> str:
    return "text_completion" if path == "/v1/completions" else "chat"
