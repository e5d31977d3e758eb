"""What strangers send: nothing harms the engine, and nothing is dropped unsaid.

Every mistake is a 4xx that says what is wrong. Most of these were reported of other servers, or
of this one. Each stands for its kind.
"""

import gzip
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ADMIN_KEY, Demo
from tta_serve.metrics import sum_samples

MODEL = "smollm2"
QUESTION = "Table staff(name, salary, dept). Which name in staff have salary above 70?"
HI = [{"role": "user", "content": "hi"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 2},
    "/v1/chat/completions/batch": {"messages": [HI, HI], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": HI, "max_tokens": 2},
}


def post(
    demo: Demo, body: Any, path: str = "/v1/chat/completions", **headers: str
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **headers}
    return httpx.post(demo.url + path, content=content, headers=sent, timeout=120)


def chat(demo: Demo, **fields: Any) -> httpx.Response:
    return post(
        demo,
        {"model": f"{MODEL}:base", "max_tokens": 2, "temperature": 0, "messages": HI, **fields},
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer that has OpenAI's shape."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["code"], str)
    assert error["message"]
    return error


@pytest.fixture(scope="module", autouse=True)
def _the_engine_lives(demo: Demo) -> Any:
    """Whatever this module sends, the engine's process stays the same one."""
    (before,) = demo.descendants("VLLM::EngineCore")
    yield
    (after,) = demo.descendants("VLLM::EngineCore")
    assert after.pid == before.pid
    assert chat(demo).status_code == 200


@pytest.mark.parametrize(
    "marks", [{"tta_turn": 5}, {"tta_turn": [0]}, {"tta_report": "x"}, {"session_id": "s"}]
)
def test_what_is_private_is_out_of_reach(demo: Demo, marks: dict[str, Any]) -> None:
    for model in (MODEL, "sql"):
        assert chat(demo, model=model, vllm_xargs=marks).status_code == 200
    assert chat(demo, kv_transfer_params={"do_remote_prefill": True}).status_code == 400
    assert chat(demo, ec_transfer_params={"a": 1}).status_code == 400


@pytest.mark.parametrize("token", [49152, 49153, 10**6, -1])
def test_a_token_outside_the_vocabulary_is_refused_in_every_field(demo: Demo, token: int) -> None:
    for prompt in ([token], [[5, token]]):
        answer = post(
            demo,
            {"model": "sql", "prompt": prompt, "max_tokens": 1, "echo": True},
            "/v1/completions",
        )
        assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt")
    for name in ("allowed_token_ids", "stop_token_ids", "logprob_token_ids"):
        answer = chat(demo, **{name: [token]})
        assert (answer.status_code, error_of(answer)["param"]) == (400, name)
    assert chat(demo, logit_bias={str(token): 1}).status_code == 400
    assert post(demo, {"model": MODEL, "tokens": [token]}, "/detokenize").status_code == 400


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"stream_options": {"include_usage": True}}, "stream"),
    ({"top_logprobs": 2}, "logprobs"),
    ({"tools": []}, "tools"),
    ({"tool_choice": "required"}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "zz"}}}, "tool"),
    ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ({"response_format": {"type": "zzz"}}, "'text', 'json_object' or 'json_schema'"),
    ({"structured_outputs": {}}, "structured"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "one kind"),
    ({"structured_outputs": {"structural_tag": "{"}}, "structural_tag"),
    ({"structured_outputs": {"regex": "foo**"}}, "regex"),
    ({"structured_outputs": {"choice": ['a"b', "e\nf"]}}, "choice"),
    ({"structured_outputs": {"grammar": 'root ::= root "a"'}}, "grammar"),
    ({"response_format": {"type": "json_object"}, "allowed_token_ids": [28]}, "json_object"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "#"}},
            }
        },
        "json",
    ),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"repetition_detection": {"max_pattern_size": -1, "min_count": -1}}, "pattern"),
    ({"chat_template_kwargs": {"conversation": []}}, "conversation"),
    ({"stop": ["a1", "b1", "c1", "d1", "e1"]}, "at most 4"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "hi", "name": None}]}, "messages.0.name"),
    ({"messages": [{"role": "user", "content": ["hello"]}]}, "messages.0.content.0"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        "messages.0.content.0.text",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "zzz"}]}]}, "these are: "),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages.0.content"),
    (
        {"messages": [*HI, {"role": "assistant", "content": "a", "tool_calls": 5}, *HI]},
        "messages.1.tool_calls",
    ),
    ({"messages": []}, "messages"),
    ({"messages": [{"content": "hi"}]}, "messages"),
    ({"n": 0}, "n"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"temperature": "warm"}, "temperature"),
    ({"seed": 2**70}, "seed"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"merge": {"policy": None, "preference": None}, "model": MODEL}, "exactly one"),
    ({"merge": {"read": "x", "experts": {"sql": 1}}, "model": MODEL}, "merge.read"),
    ({"merges": {"experts": {"sql": 1}}}, "did you mean merge"),
    ({"merg": {"experts": {"sql": 1}}}, "did you mean merge"),
    ({"extra_body": {"merge": {"experts": {"sql": 1}}}}, "extra_body"),
    ({"use_beam_search": True, "n": 2, "response_format": {"type": "json_object"}}, "beam search"),
    ({"n": 500}, "at most"),
]


@pytest.mark.parametrize(
    ("fields", "says"), MISTAKES, ids=[json.dumps(f)[:60] for f, _ in MISTAKES]
)
def test_a_mistake_is_400_and_says_what_is_wrong_streamed_or_not(
    demo: Demo, fields: dict[str, Any], says: str
) -> None:
    for stream in (False, True):
        if stream and "stream_options" in fields:
            continue
        answer = chat(demo, **fields, stream=stream)
        assert answer.status_code == 400, answer.text
        assert says in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model":"smollm2:base","messages":[],"zz":' + b"[" * 900 + b"]" * 900 + b"}", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "smollm2", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"model": "smollm2", "messages": [{"role": "user", "content": "\xe9"}]}', 400),
        (b'{"model": "smollm2", "temperature": NaN, "messages": []}', 400),
        (b'"a string"', 400),
        (b"", 400),
        (b"[]", 400),
    ],
)
def test_bodies_that_are_no_request(demo: Demo, body: bytes, status: int) -> None:
    for path in GENERATING:
        answer = post(demo, body, path)
        assert answer.status_code == status, path
        error_of(answer)


def test_every_route_that_generates_takes_merge_and_says_what_it_did(demo: Demo) -> None:
    for path, body in GENERATING.items():
        answer = post(demo, {"model": MODEL, "merge": {"experts": {"sql": 0.5}}, **body}, path)
        assert answer.status_code == 200, answer.text
        said = answer.json()["merge"]
        assert (said["policy"], said["experts"]) == ("explicit", {"sql": 0.5})
        assert answer.headers["x-tta-mix"] == said["mix"]
        assert answer.json()["model"] == MODEL
        assert post(demo, {"model": "nobody", **body}, path).status_code == 404
        assert (
            post(demo, {"model": MODEL, "merge": {"policy": "nope"}, **body}, path).status_code
            == 400
        )


@pytest.mark.parametrize("path", [path for path in GENERATING if "batch" not in path])
def test_a_stream_of_every_route_says_it_once_at_its_end(demo: Demo, path: str) -> None:
    answer = post(demo, {"model": "sql", "stream": True, **GENERATING[path]}, path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-tta-policy"] == "pinned"
    assert answer.text.count('"merge":') == 1
    assert (
        '"merge":'
        in [event for event in answer.text.split("\n\n") if event and "[DONE]" not in event][-1]
    )


def test_each_prompt_of_a_list_has_a_mix_of_its_own(demo: Demo) -> None:
    prompts = ["The capital of France is", QUESTION]
    answer = post(
        demo,
        {"model": MODEL, "prompt": prompts, "max_tokens": 4, "temperature": 0},
        "/v1/completions",
    ).json()
    mixes = [one["mix"] for one in answer["merge"]["prompts"]]
    assert mixes[0] == "base" != mixes[1]
    chats = [
        [{"role": "user", "content": QUESTION}],
        [{"role": "user", "content": "What is the capital of France?"}],
    ]
    answer = post(
        demo, {"model": MODEL, "messages": chats, "max_tokens": 4}, "/v1/chat/completions/batch"
    ).json()
    assert [list(one["experts"]) for one in answer["merge"]["prompts"]] == [["sql"], []]


def test_a_text_to_read_gives_all_continuations_of_a_context_one_mix(demo: Demo) -> None:
    body = {
        "model": MODEL,
        "prompt": ["yes", "no", "SELECT"],
        "max_tokens": 1,
        "merge": {"read": QUESTION},
    }
    merge = post(demo, body, "/v1/completions").json()["merge"]
    assert len({one["mix"] for one in merge["prompts"]}) == 1
    assert "sql" in merge["experts"]


def test_nothing_is_ignored_unsaid(demo: Demo) -> None:
    def warnings(**fields: Any) -> str:
        answer = chat(demo, model=MODEL, **fields)
        assert answer.status_code == 200, answer.text
        return " ".join(answer.json()["merge"]["warnings"])

    assert warnings() == ""
    for name in ("best_of", "functions", "guided_choice", "not_a_field"):
        assert name in warnings(**{name: [1]})
    assert "sql" in warnings(merge={"experts": {"sql": 0.02}})
    assert "top_p" in warnings(use_beam_search=True, n=2, top_p=0.5)


def test_tools_are_called_when_they_must_and_answers_go_back(demo: Demo) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        answer = chat(demo, model=MODEL, tools=[TOOL], tool_choice=choice, max_tokens=60).json()
        (call, *_) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        assert isinstance(json.loads(call["function"]["arguments"])["a"], int)
    left_to_it = chat(demo, tools=[TOOL], tool_choice="auto", max_tokens=8)
    assert left_to_it.status_code == 200
    talk = [
        {"role": "user", "content": "add 1"},
        {"role": "assistant", "content": None, "tool_calls": [call | {"type": "function"}]},
        {"role": "tool", "tool_call_id": call["id"], "content": "2"},
    ]
    assert chat(demo, messages=talk, tools=[TOOL]).status_code == 200


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, lambda text: text.isdecimal()),
        (
            {"structured_outputs": {"grammar": 'root ::= "ab" | "cd"'}},
            lambda text: text in ("ab", "cd"),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": TOOL["function"]["parameters"]},
                }
            },
            lambda text: isinstance(json.loads(text)["a"], int),
        ),
    ],
)
def test_structured_outputs_of_every_kind(demo: Demo, fields: dict[str, Any], check: Any) -> None:
    answer = chat(demo, **fields, max_tokens=40).json()
    assert check(answer["choices"][0]["message"]["content"])


def test_the_rest_of_vllms_surface_is_there(demo: Demo) -> None:
    for path in (
        "/health",
        "/ping",
        "/version",
        "/load",
        "/healthz",
        "/readyz",
        "/tokenizer_info",
        "/openapi.json",
    ):
        assert httpx.get(demo.url + path, timeout=30).status_code == 200, path
    tokens = post(demo, {"model": "sql", "prompt": "hi there"}, "/tokenize").json()["tokens"]
    assert (
        post(demo, {"model": MODEL, "tokens": tokens}, "/detokenize").json()["prompt"] == "hi there"
    )
    assert post(demo, {"model": MODEL, "messages": HI}, "/tokenize").json()["count"] > 5
    assert (
        post(demo, {"model": MODEL, "messages": HI}, "/v1/messages/count_tokens").json()[
            "input_tokens"
        ]
        > 5
    )
    assert post(demo, {"model": "nobody", "prompt": "x"}, "/tokenize").status_code == 404
    for path in (
        "/scale_elastic_ep",
        "/inference/v1/generate",
        "/generative_scoring",
        "/collective_rpc",
    ):
        assert post(demo, {}, path).status_code == 404, path


def test_http_as_it_should_be(demo: Demo) -> None:
    wrong = httpx.put(f"{demo.url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    error_of(wrong)
    head = httpx.head(f"{demo.url}/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert httpx.get(f"{demo.url}/v1/models/").status_code == 200
    assert (
        "access-control-allow-origin"
        not in httpx.get(f"{demo.url}/v1/models", headers={"origin": "http://a"}).headers
    )
    body = json.dumps({"model": "sql", "messages": HI, "max_tokens": 1}).encode()
    packed = post(demo, gzip.compress(body), **{"content-encoding": "gzip"})
    assert packed.status_code == 200, packed.text
    assert post(demo, body, **{"content-encoding": "br"}).status_code == 415
    assert post(demo, body, **{"content-type": "text/plain"}).status_code == 415
    assert (
        post(demo, gzip.compress(b" " * 50_000_000), **{"content-encoding": "gzip"}).status_code
        == 413
    )
    assert httpx.put(f"{demo.url}/admin/kill", content=b"{rubbish").status_code == 401, (
        "the key comes before the body"
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"x-session-id": "josé".encode("latin-1")},
        {"x-request-timeout-seconds": b"0.01"},
        {"x-request-disconnect-disabled": b"?1"},
        {"serve_multiplexed_model_id": b"x"},
        {"x-data-parallel-rank": b"7"},
        {"x-vllm-priority": b"9"},
        {"x-request-id": "é".encode("latin-1")},
        {"x-request-id": b"a" * 5000},
        {"traceparent": b"rubbish"},
    ],
)
def test_headers_of_clients_switch_nothing(demo: Demo, headers: dict[str, bytes]) -> None:
    body = json.dumps({"model": "sql", "messages": HI, "max_tokens": 8, "stream": True}).encode()
    sent = [
        (b"content-type", b"application/json"),
        *((name.encode(), value) for name, value in headers.items()),
    ]
    answer = httpx.post(f"{demo.url}/v1/chat/completions", content=body, headers=sent, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_client_that_leaves_frees_its_slot(demo: Demo) -> None:
    body = {"model": "sql", "messages": HI, "max_tokens": 1500, "ignore_eos": True}
    url, headers = f"{demo.url}/v1/chat/completions", {"x-request-disconnect-disabled": "?1"}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(url, json=body, headers=headers, timeout=0.7)
    with httpx.stream(
        "POST", url, json={**body, "stream": True}, headers=headers, timeout=60
    ) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 15
    while running(demo):
        assert time.monotonic() < end, "requests run on without anybody to read them"
        time.sleep(0.3)


def running(demo: Demo) -> float:
    lines = httpx.get(f"{demo.url}/metrics", timeout=30).text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")
    )


def test_many_prompts_of_one_request_wait_behind_others(demo: Demo) -> None:
    def small() -> float:
        start = time.monotonic()
        answer = post(
            demo, {"model": f"{MODEL}:base", "prompt": "hi", "max_tokens": 1}, "/v1/completions"
        )
        assert answer.status_code == 200
        return time.monotonic() - start

    too_many = post(
        demo,
        {"model": f"{MODEL}:base", "prompt": [[28, 30]] * 1000, "max_tokens": 1},
        "/v1/completions",
    )
    assert too_many.status_code == 400
    assert "at most 272" in error_of(too_many)["message"]
    body = {
        "model": f"{MODEL}:base",
        "prompt": [[28, 30]] * 250,
        "max_tokens": 8,
        "ignore_eos": True,
    }
    answers: list[httpx.Response] = []
    many = threading.Thread(target=lambda: answers.append(post(demo, body, "/v1/completions")))
    start = time.monotonic()
    many.start()
    time.sleep(0.5)
    beside = small()
    many.join()
    took = time.monotonic() - start
    assert len(answers[0].json()["choices"]) == 250
    assert beside < took / 2, f"{beside:.2f} s beside a request of {took:.2f} s"


def test_a_full_queue_says_when_to_come_back(demo: Demo) -> None:
    body = {
        "model": f"{MODEL}:base",
        "prompt": [[28, 30]] * 250,
        "max_tokens": 4,
        "ignore_eos": True,
    }
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(demo, body, "/v1/completions")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 2
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)


def test_requests_whose_heads_never_end_are_cut(demo: Demo) -> None:
    place = "127.0.0.1", int(demo.url.rpartition(":")[2])
    halves = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n", b"GET /v1/mod"
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(place, timeout=40)) for _ in halves]
        for connection, half in zip(opened, halves, strict=True):
            connection.sendall(half)
        assert [connection.recv(1) for connection in opened] == [b"", b""], "closed"


def test_the_config_in_force_is_shown_to_the_administrator_alone(demo: Demo) -> None:
    assert httpx.get(f"{demo.url}/admin/config").status_code == 401
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    shown = httpx.get(f"{demo.url}/admin/config", headers=key).raise_for_status().json()
    assert shown["server"]["port"] == int(demo.url.rpartition(":")[2])
    assert shown["policies"]["inline"]["inline"] is True
    assert ADMIN_KEY not in json.dumps(shown)


def test_many_who_ask_whether_it_is_ready_cost_the_engine_next_to_nothing(demo: Demo) -> None:
    def count_requests() -> float:
        text = httpx.get(f"{demo.url}/metrics").text
        return sum_samples(text, "vllm:request_success_total")

    before = count_requests()
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: httpx.get(f"{demo.url}/readyz").status_code, range(64)))
    assert found == {200}
    assert count_requests() - before <= 2 * 2, "of the base and of a mix, every five seconds"


def test_vllms_two_routes_for_adapters_lead_to_the_library(demo: Demo) -> None:
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    unload, load = "/v1/unload_lora_adapter", "/v1/load_lora_adapter"
    assert post(demo, {"lora_name": "dates"}, unload).status_code == 401
    assert (
        post(demo, {"lora_name": "dates"}, unload, **key).text
        == "Success: LoRA adapter 'dates' removed successfully."
    )
    assert chat(demo, model="dates").status_code == 404
    elsewhere = post(demo, {"lora_name": "dates", "lora_path": "/etc"}, load, **key)
    assert elsewhere.status_code == 400
    assert "tta experts add" in error_of(elsewhere)["message"]
    assert post(demo, {"lora_name": "dates", "lora_path": "dates"}, load, **key).status_code == 200
    assert chat(demo, model="dates").status_code == 200
    assert post(demo, {"lora_name": "dates"}, load, **key).status_code == 400
    assert post(demo, {"lora_name": "dates", "load_inplace": True}, load, **key).status_code == 200
    assert post(demo, {"lora_name": "nobody"}, unload, **key).status_code == 404
