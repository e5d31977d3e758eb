"""Spans: sent by the real exporter to a collector, in the client's trace, without any text."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.factories.asgi import Got, asked, spoken
from tests.factories.collector import CollectedSpan, Collector, collecting
from tests.tta_serve.serving.generation.test_merging import TEXT, Desk, body, said
from tta_serve.config.telemetry import TracesConfig
from tta_serve.evaluation.local_server import find_free_port
from tta_serve.telemetry.traces import EXPORT_TIMEOUT_S, TraceExport

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@contextmanager
def tracing(endpoint: str, sample: float = 1.0) -> Iterator[None]:
    export = TraceExport(TracesConfig(endpoint=endpoint, sample=sample))
    try:
        yield
    finally:
        export.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def ask(desk: Desk, asks: Any, flags: str | None = "01") -> Got:
    headers = {} if flags is None else {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
    return asked(desk.app, "POST", TEXT, spoken(asks), headers=headers)


def by_name(collector: Collector) -> dict[str, CollectedSpan]:
    return {span.name: span for span in collector.spans}


def test_a_request_is_a_span_in_its_clients_trace_and_its_steps_are_below(
    collector: Collector,
) -> None:
    desk = Desk()
    with tracing(collector.endpoint):
        got = ask(desk, body(said(sql=1.0), max_tokens=5, temperature=0))
    spans = by_name(collector)
    assert spans.keys() == {"text_completion demo", "route", "probe", "engine"}
    request = spans["text_completion demo"]
    assert {span.trace for span in spans.values()} == {TRACE}
    assert request.parent == PARENT
    assert spans["route"].parent == spans["engine"].parent == request.id
    assert spans["probe"].parent == spans["route"].id
    assert spans["probe"].attributes == {"tta.probe": "features"}
    seconds = request.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < seconds < 5
    assert request.attributes.pop("tta.router_seconds") < seconds
    merge = got.json["merge"]
    assert request.attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "tta-serve",
        "gen_ai.request.model": "demo",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.response.finish_reasons": ["stop"],
        "http.response.status_code": 200,
        "tta.request_id": got.headers["x-request-id"],
        "tta.policy": "table",
        "tta.mix": merge["mix"],
        "tta.experts": json.dumps({"sql": 1.0}),
        "tta.abstained": False,
        "tta.kept": False,
    }
    [(_, _, options)] = desk.llm.ran
    assert options["trace_headers"]["traceparent"] == f"00-{TRACE}-{spans['engine'].id}-01"


def test_no_span_has_any_text_of_a_prompt(collector: Collector) -> None:
    with tracing(collector.endpoint):
        ask(Desk(), body("my secret") | {"model": "sql"})
        ask(Desk(), body("my secret", merge={"experts": {"secret": 1}}))
    assert len(collector.spans) == 4
    assert "secret" not in str(collector.spans)


def test_what_fails_is_marked_with_the_kind_of_its_error(collector: Collector) -> None:
    desk = Desk()
    desk.llm.error = RuntimeError("it broke")
    with tracing(collector.endpoint):
        ask(desk, body("x") | {"model": "sql"})
        ask(Desk(), body("x") | {"model": "é" * 999, "max_tokens": 10**40})
    failed, refused = [span for span in collector.spans if span.failed]
    assert (failed.name, failed.attributes["error.type"]) == (
        "text_completion sql",
        "internal_error",
    )
    assert refused.name == "text_completion", "a name that a client may choose is no span's"
    assert refused.attributes["error.type"] == "model_not_found"
    engine = by_name(collector)["engine"]
    assert engine.attributes == {"error.type": "RuntimeError"}


def test_a_client_says_whether_it_is_traced_and_else_the_share_does(collector: Collector) -> None:
    with tracing(collector.endpoint, sample=0.0):
        ask(Desk(), body("x") | {"model": "sql"}, flags=None)
        ask(Desk(), body("x") | {"model": "math"}, flags="01")
    with tracing(collector.endpoint, sample=1.0):
        ask(Desk(), body("x") | {"model": "demo:base"}, flags="00")
    names = {span.name for span in collector.spans}
    assert names == {"text_completion math", "route", "engine"}


def test_without_a_collector_nothing_is_traced_and_vllm_hears_the_clients_trace() -> None:
    desk = Desk()
    ask(desk, body("x") | {"model": "sql"})
    ask(desk, body("x") | {"model": "sql"}, flags=None)
    [first, second] = [options for _, _, options in desk.llm.ran]
    assert first["trace_headers"]["traceparent"] == f"00-{TRACE}-{PARENT}-01"
    assert "trace_headers" not in second


def test_a_collector_that_is_dead_slows_nobody_and_fails_nobody() -> None:
    desk = Desk()
    ask(desk, body("x") | {"model": "sql"})

    with tracing(f"http://127.0.0.1:{find_free_port()}/v1/traces"):
        ask(desk, body("x") | {"model": "sql"})
        time.sleep(1.5)  # its export is under way by now
        start = time.monotonic()
        for _ in range(100):
            assert ask(desk, body("x") | {"model": "sql"}).status == 200
        with_s = time.monotonic() - start
        start = time.monotonic()
    # An export that fails is tried again for that long: who waited for each would take minutes.
    assert with_s < 10 * EXPORT_TIMEOUT_S
    assert time.monotonic() - start < EXPORT_TIMEOUT_S, "the end does not wait for it either"
