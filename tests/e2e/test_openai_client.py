"""The HTTP contract, with the real openai client against the running demo."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Demo

MODEL = "smollm2"
QUESTION = "Table staff(name, salary, dept). Which name in staff have salary above 70?"


def chat(
    client: openai.OpenAI,
    model: str = MODEL,
    content: str = QUESTION,
    merge: Any = None,
    **options: Any,
) -> Any:
    extra = {} if merge is None else {"extra_body": {"merge": merge}}
    settings: dict[str, Any] = {"max_tokens": 24, "temperature": 0, **extra, **options}
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], **settings
    )


def text(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_chat_is_routed_and_says_what_it_did(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.model == MODEL
    fields = {
        "policy",
        "arm",
        "experts",
        "mix",
        "abstained",
        "batch",
        "acts_from",
        "invoked_from",
        "segments",
        "kept",
        "fallback",
        "scores",
        "reason",
        "router_ms",
        "request_id",
        "gating",
        "warnings",
    }
    assert set(answer.merge) == fields
    assert answer.merge["policy"] == "inline"
    assert max(answer.merge["experts"], key=answer.merge["experts"].get) == "sql"
    assert answer.merge["router_ms"] > 0
    assert text(answer).startswith("SELECT")


def test_everyday_questions_are_the_bases(client: openai.OpenAI) -> None:
    answer = chat(client, content="What is the capital of France?")
    assert answer.merge["abstained"]
    assert answer.merge["experts"] == {}
    assert answer.merge["mix"] == "base"
    assert text(answer) == text(
        chat(client, f"{MODEL}:base", content="What is the capital of France?")
    )


def test_pinned_entry_and_explicit_merges_are_one_mix_when_they_are_equal(
    client: openai.OpenAI,
) -> None:
    pinned = chat(client, f"{MODEL}:balanced")
    entry = chat(client, merge={"entry": "balanced"})
    explicit = chat(client, merge={"experts": {"math": 0.5, "sql": 0.5}})
    assert {a.merge["mix"] for a in (pinned, entry, explicit)} == {explicit.merge["mix"]}
    assert explicit.merge["experts"] == {"math": 0.5, "sql": 0.5}
    assert text(pinned) == text(entry) == text(explicit)
    assert [a.merge["policy"] for a in (pinned, entry, explicit)] == ["pinned", "entry", "explicit"]


def test_coefficients_go_to_the_grid_and_the_answer_says_so(client: openai.OpenAI) -> None:
    assert chat(client, merge={"experts": {"sql": 0.333}}).merge["experts"] == {"sql": 0.35}


def test_a_coefficient_may_differ_from_place_to_place(client: openai.OpenAI) -> None:
    for coefficient in ({"attention": 1.0, "mlp": 0.5}, [0.0] * 10 + [1.0] * 20):
        assert chat(client, merge={"experts": {"sql": coefficient}}).merge["experts"] == {
            "sql": coefficient
        }
    whole = chat(client, merge={"experts": {"sql": 1.0}})
    assert (
        chat(client, merge={"experts": {"sql": [1.0] * 30}}).merge["mix"] == whole.merge["mix"]
    ), "written otherwise, the same"


def test_a_named_policy_decides(client: openai.OpenAI) -> None:
    assert chat(client, merge={"policy": "base"}).merge["experts"] == {}


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_is_the_same_answer_with_merge_in_its_last_chunk(
    client: openai.OpenAI, usage: bool
) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(chat(client, stream=True, **options))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    whole = chat(client)
    assert streamed == text(whole)
    assert [hasattr(c, "merge") for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].merge["mix"] == whole.merge["mix"]
    assert {c.model for c in chunks} == {MODEL}


def test_a_stream_of_several_choices_keeps_them_all(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, n=3, temperature=1, seed=1, max_tokens=6))
    finished = [c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason]
    assert sorted(finished) == [0, 1, 2]
    assert chunks[-1].merge["policy"] == "inline"


def test_n_stop_and_logprobs(client: openai.OpenAI) -> None:
    several = chat(client, n=3, temperature=1, seed=1)
    assert [c.index for c in several.choices] == [0, 1, 2]
    stopped = chat(client, f"{MODEL}:sql", stop=["FROM"])
    assert "FROM" not in text(stopped)
    assert stopped.choices[0].finish_reason == "stop"
    answer = chat(client, f"{MODEL}:sql", logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert "".join(t.token for t in content).startswith("SELECT")
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in content)


def test_completions_streaming_and_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": "The capital of France is",
        "max_tokens": 6,
        "temperature": 0,
    }
    whole: Any = client.completions.create(**options)
    chunks: Any = list(client.completions.create(**options, stream=True))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert "Paris" in whole.choices[0].text
    assert whole.merge["mix"] == chunks[-1].merge["mix"] == "base"
    tokens: Any = client.completions.create(**{**options, "prompt": [504, 3575, 282, 4649, 314]})
    assert tokens.merge["policy"] == "inline"


def test_headers_say_it_too(client: openai.OpenAI) -> None:
    for stream in (False, True):
        raw = client.chat.completions.with_raw_response.create(
            model=f"{MODEL}:sql",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=2,
            stream=stream,
            extra_headers={"x-request-id": f"mine-{stream}"},
        )
        assert raw.headers["x-tta-policy"] == "pinned"
        assert len(raw.headers["x-tta-mix"]) == 16
        assert raw.headers["x-request-id"] == f"mine-{stream}"


def test_models_are_listed_and_each_can_be_asked(client: openai.OpenAI) -> None:
    names = [m.id for m in client.models.list()]
    assert {MODEL, "auto", "sql", f"{MODEL}:base", f"{MODEL}:sql", f"{MODEL}:balanced"} <= set(
        names
    )
    for name in names:
        assert client.models.retrieve(name).id == name
        assert chat(client, name, max_tokens=1).model == name, (
            "the answer has the name that was asked for"
        )
    assert chat(client, "auto", max_tokens=1).merge["policy"] == "inline"
    assert chat(client, "sql", max_tokens=1).merge["experts"] == {"sql": 1.0}
    card: Any = client.models.retrieve("sql")
    assert (card.root, card.parent, card.max_model_len) == (MODEL, MODEL, 2048)
    assert client.models.retrieve(MODEL).parent is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", ["gpt-4", f"{MODEL}:nope", f"{MODEL}:"])
def test_an_unknown_model_is_404_and_names_the_models(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"{MODEL}:sql"):
        chat(client, model)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ("sql", "merge"),
        ({}, "exactly one of: experts, segments, policy, entry"),
        ({"experts": {"sql": 1}, "policy": "base"}, "exactly one"),
        ({"polcy": "base"}, "merge.polcy"),
        ({"policy": "nope"}, "there are: base, retrieval"),
        ({"entry": "nope"}, "there are: balanced"),
        ({"experts": {"nope": 1}}, "the library holds: dates, math"),
        ({"experts": {"sql": 3}}, r"must lie in \[-2.0, 2.0\]"),
        ({"experts": {"sql": "1"}}, "a coefficient is a number"),
        ({"experts": {"sql": [1.0, 0.5]}}, "the base has 30 layers"),
        (
            {"experts": dict.fromkeys(("dates", "math", "orders", "redact", "sql"), 0.2)},
            "at most 4",
        ),
    ],
)
def test_an_unusable_merge_is_400_and_says_what_works(
    client: openai.OpenAI, merge: Any, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as error:
        chat(client, merge=merge)
    body: Any = error.value.body
    assert body["type"] == "invalid_request_error"
    assert body["param"].startswith("merge")


def test_a_pinned_model_with_merge_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="already fixes the mix"):
        chat(client, f"{MODEL}:sql", merge={"policy": "base"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"content": "word " * 5000}, "context length"),
    ],
)
def test_vllms_own_refusals_come_through(
    client: openai.OpenAI, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        chat(client, **options)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (json.dumps({"model": MODEL}).encode(), 400),
        (
            (
                b'{"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "merge":'
                b' {"experts": {"sql": NaN}}}'
            ),
            400,
        ),
        (b" " * (5 * 1024 * 1024), 413),
    ],
)
def test_raw_rubbish_gets_openais_error_shape(demo: Demo, body: bytes, status: int) -> None:
    answer = httpx.post(
        f"{demo.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert isinstance(answer.json()["error"]["code"], str)


def test_an_unknown_path_is_404_in_the_same_shape(demo: Demo) -> None:
    answer = httpx.get(f"{demo.url}/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_health_and_readiness(demo: Demo) -> None:
    assert httpx.get(f"{demo.url}/healthz").status_code == 200
    assert httpx.get(f"{demo.url}/readyz").status_code == 200


def test_the_engine_asks_for_huge_pages(demo: Demo) -> None:
    (worker,) = demo.descendants("VLLM::Worker")
    assert worker.environ()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


def test_metrics_are_ours_and_vllms_and_bounded(demo: Demo, client: openai.OpenAI) -> None:
    for i in range(20):
        chat(client, merge={"experts": {"sql": 0.05 * i + 0.05, "math": 0.5}}, max_tokens=1)
    exposition = httpx.get(f"{demo.url}/metrics", timeout=30).text
    for name in (
        'tta_requests_total{outcome="ok",policy="explicit"',
        'tta_requests_total{outcome="client_error",policy="none"',
        'tta_router_seconds_count{policy="inline"',
        'tta_expert_coefficient_total{expert="sql"',
        'tta_abstentions_total{policy="inline"',
        "# TYPE tta_later_segments_total counter",
        "tta_distinct_mixes{",
        "tta_slots_used{",
        "tta_slots{",
        "vllm:time_to_first_token_seconds_count{",
        "vllm:generation_tokens_total{",
        "vllm:prefix_cache_queries_total{",
    ):
        assert name in exposition, name
    assert "vllm:lora_requests_info{" not in exposition, "one series for every combination of mixes"
    assert "mix-" not in exposition
