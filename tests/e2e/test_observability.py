"""What an operator sees of a server: its log on standard output, and its spans in a collector."""

import json
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ADMIN_KEY, Demo
from tests.factories.collector import Collector

QUESTION = "Table staff(name, salary, dept). Which name in staff have salary above 70?"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def wait_for_line(demo: Demo, **wanted: Any) -> dict[str, Any]:
    """Return the line that has these values, once it is written."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for line in demo.lines:
            if all(line.get(name) == value for name, value in wanted.items()):
                return line
        time.sleep(0.1)
    raise AssertionError(f"no line has {wanted}: {demo.last_words}")


def ask(demo: Demo, name: str, **more: Any) -> httpx.Response:
    headers = {"x-request-id": name, "traceparent": f"00-{TRACE}-{PARENT}-01"}
    asks = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 8,
        **more,
    }
    url = f"{demo.url}/v1/chat/completions"
    return httpx.post(url, json=asks, headers=headers, timeout=120)


def test_standard_output_says_who_serves_and_what_was_asked(demo: Demo) -> None:
    start = wait_for_line(demo, event="serving")
    assert start["model"] == "smollm2"
    assert "sql" in start["experts"]
    merge = ask(demo, "seen").json()["merge"]
    line = wait_for_line(demo, request_id="seen")
    assert line["experts"] == merge["experts"] == {"sql": 1.0}
    assert (line["policy"], line["mix"]) == ("inline", merge["mix"])
    assert line["completion_tokens"] == 8
    assert 0 < line["first_token_seconds"] < line["seconds"]
    assert line["trace_id"] == TRACE
    assert "salary" not in json.dumps(demo.lines)


def test_a_stream_that_its_client_leaves_is_a_line_too(demo: Demo) -> None:
    asks = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 500,
        "stream": True,
    }
    headers = {"x-request-id": "left"}
    url = f"{demo.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=asks, headers=headers, timeout=60) as answer:
        next(answer.iter_bytes())
    line = wait_for_line(demo, request_id="left")
    assert (line["status"], line["outcome"]) == (200, "aborted")
    assert line["completion_tokens"] < 500


def test_a_change_of_the_experts_is_a_line(demo: Demo) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    found = httpx.get(f"{demo.url}/admin/experts", headers=headers, timeout=60).json()
    digest = found["replicas"][0]["experts"]["dates"]
    url = f"{demo.url}/v1/unload_lora_adapter"
    asks = {"lora_name": "dates", "lora_path": "dates"}
    gone = httpx.post(url, json={"lora_name": "dates"}, headers=headers, timeout=60)
    assert gone.status_code == 200, gone.text
    back = httpx.post(f"{demo.url}/v1/load_lora_adapter", json=asks, headers=headers, timeout=60)
    assert back.status_code == 200, back.text
    assert digest
    wait_for_line(demo, event="experts changed", removed=["dates"])
    wait_for_line(demo, event="experts changed", added=["dates"])


@pytest.mark.parametrize(
    ("policy", "steps"),
    [("inline", {"route", "engine"}), ("retrieval", {"route", "probe", "engine"})],
)
def test_a_trace_goes_from_the_client_through_the_router_into_vllm(
    demo: Demo, collector: Collector, policy: str, steps: set[str]
) -> None:
    name = f"traced-{policy}"
    merge = ask(demo, name, merge={"policy": policy}, max_tokens=4).json()["merge"]
    request = collector.wait_for(lambda span: span.attributes.get("tta.request_id") == name)
    assert request.name == "chat smollm2"
    assert (request.trace, request.parent) == (TRACE, PARENT)
    assert request.attributes["tta.mix"] == merge["mix"]
    assert request.attributes["gen_ai.usage.output_tokens"] == 4

    below = [span for span in collector.spans if span.parent == request.id]
    [engine] = [span for span in below if span.name == "engine"]
    inside = collector.wait_for(lambda span: span.parent == engine.id)
    assert inside.name == "llm_request"
    assert inside.attributes["gen_ai.usage.completion_tokens"] == 4
    assert "salary" not in str(collector.spans)
    assert {span.name for span in below} <= steps


def test_vllm_makes_no_span_of_its_own(demo: Demo, collector: Collector) -> None:
    httpx.get(f"{demo.url}/readyz", timeout=60)  # its canary asks the engine
    time.sleep(2)
    known = ("chat", "text_completion", "route", "probe", "engine", "llm_request")
    assert {span.name.partition(" ")[0] for span in collector.spans} <= {*known}
    assert all(span.parent for span in collector.spans if span.name == "llm_request")
