"""Bodies that nobody wrote: whatever comes, the answer is no 5xx and comes in time.

The engine's process stays the same one.

`TTA_FUZZ_CASES` raises the number of requests (`make test-long` sends 3,000 to the schema's
operations).
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from tests.e2e.conftest import ADMIN_KEY, Demo
from tests.e2e.test_api import GENERATING, MODEL

CASES = int(os.environ.get("TTA_FUZZ_CASES", "150"))
TIMEOUT_S = 60
FUZZED = settings(
    max_examples=max(20, CASES // len(GENERATING)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
tokens = st.integers(-2, 49160)
fields = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(-1, 3) | values,
        "stop": st.lists(st.text(max_size=3), max_size=6) | values,
        "stream": st.booleans(),
        "seed": st.integers(),
        "logprobs": st.booleans() | st.integers(-2, 30),
        "top_logprobs": st.integers(-2, 30),
        "prompt_logprobs": st.integers(-2, 5),
        "temperature": st.floats() | st.integers(-3, 3),
        "top_p": st.floats(),
        "top_k": st.integers(),
        "min_p": st.floats(),
        "repetition_penalty": st.floats(),
        "presence_penalty": st.floats(),
        "logit_bias": st.dictionaries(st.text("0123456789-x", max_size=6), st.floats(), max_size=2),
        "allowed_token_ids": st.lists(tokens, max_size=3) | values,
        "stop_token_ids": st.lists(tokens, max_size=3) | values,
        "bad_words": st.lists(st.text(max_size=5), max_size=3),
        "min_tokens": st.integers(-1, 5),
        "ignore_eos": st.booleans(),
        "use_beam_search": st.booleans(),
        "truncate_prompt_tokens": st.integers(-2, 100),
        "cache_salt": st.text(max_size=4),
        "priority": st.integers(-1, 1),
        "vllm_xargs": st.dictionaries(
            st.text(max_size=8) | st.just("tta_turn"), values, max_size=2
        ),
        "kv_transfer_params": values,
        "structured_outputs": st.fixed_dictionaries(
            {},
            optional={
                "regex": st.text(max_size=8),
                "choice": st.lists(st.text(max_size=3), max_size=3),
                "json": values,
            },
        ),
        "response_format": values,
        "tools": values,
        "tool_choice": values,
        "chat_template_kwargs": values,
        "merge": values
        | st.fixed_dictionaries(
            {"experts": st.dictionaries(st.sampled_from(["sql", "math", "x"]), values)}
        ),
        "user": values,
        "session_id": values,
        "metadata": values,
    },
)
contents = st.text(max_size=20) | st.lists(
    values
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url", "refusal"]), "text": values}
    ),
    max_size=3,
)
messages = st.lists(
    values
    | st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]),
            "content": contents,
        },
        optional={"tool_calls": values, "name": values},
    ),
    max_size=4,
)
prompts: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "/v1/chat/completions": st.fixed_dictionaries({"messages": messages}),
    "/v1/chat/completions/batch": st.fixed_dictionaries(
        {"messages": st.lists(messages, max_size=3)}
    ),
    "/v1/completions": st.fixed_dictionaries(
        {
            "prompt": st.text(max_size=20)
            | st.lists(tokens, max_size=5)
            | st.lists(st.lists(tokens, max_size=3), max_size=3)
            | values
        }
    ),
    "/v1/responses": st.fixed_dictionaries({"input": st.text(max_size=20) | messages | values}),
    "/v1/messages": st.fixed_dictionaries({"messages": messages}, optional={"system": values}),
}


def engine_of(demo: Demo) -> int:
    (engine,) = demo.descendants("VLLM::EngineCore")
    return engine.pid


@pytest.mark.parametrize("path", [*GENERATING])
def test_no_body_of_a_generating_route_makes_a_5xx(demo: Demo, path: str) -> None:
    before = engine_of(demo)
    short = (
        {"max_tokens": 2, "max_output_tokens": 2} if path != "/v1/messages" else {"max_tokens": 2}
    )
    models = st.sampled_from([MODEL, "sql", f"{MODEL}:base", "auto", "nobody"])

    @FUZZED
    @given(models, prompts[path], fields)
    def send(model: str, prompt: dict[str, Any], more: dict[str, Any]) -> None:
        body = json.dumps({**short, **more, **prompt, "model": model}).encode()
        headers = {"content-type": "application/json"}
        answer = httpx.post(demo.url + path, content=body, headers=headers, timeout=TIMEOUT_S)
        assert answer.status_code < 500, (answer.status_code, body, answer.text)
        if answer.status_code >= 400:
            assert isinstance(answer.json()["error"]["code"], str), answer.text
        assert '"code":"internal_error"' not in answer.text.replace(" ", ""), (body, answer.text)

    send()
    assert engine_of(demo) == before


@pytest.mark.skipif("TTA_FUZZ_CASES" not in os.environ, reason="of minutes: make test-long")
def test_no_operation_of_the_schema_makes_a_5xx(demo: Demo) -> None:
    before = engine_of(demo)
    schema = schemathesis.openapi.from_url(f"{demo.url}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [operation.ok() for operation in found if isinstance(operation, Ok)]
    assert len(operations) == len(found)
    each = settings(FUZZED, max_examples=max(5, CASES // len(operations)))
    for operation in operations:
        if operation.path.startswith(
            ("/admin/experts/{name}", "/admin/kill", "/v1/unload", "/v1/load")
        ):
            continue  # these change what all other tests are answered with

        @each
        @given(operation.as_strategy())
        def send(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body |= _short(case.path, case.body)
            key = {"authorization": f"Bearer {ADMIN_KEY}"} if case.path.startswith("/admin") else {}
            answer = case.call(headers=key, timeout=TIMEOUT_S)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)

        send()
    assert engine_of(demo) == before


def _short(path: str, body: Mapping[str, Any]) -> dict[str, int]:
    """Return what keeps an answer to two tokens, where a schema lets a body leave it out."""
    given = {
        name: 2
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")
        if name in body
    }
    return given | {name: 2 for name in GENERATING.get(path, ()) if name.startswith("max_")}
