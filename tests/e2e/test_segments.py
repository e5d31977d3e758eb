"""Answers in segments, of a real engine: each is what its mix says alone."""

from typing import Any

import openai
import pytest

from tests.e2e.conftest import Demo

MODEL = "smollm2"
TICKET = (
    "Redact this ticket and then tell category and priority: Anna Lund here. My parcel is lost."
    " It is urgent! Call +49 170 5550123."
)
DATED = (
    "Category and priority of this ticket, and its date in ISO: The app crashes since the 3rd of"
    " May 2021. It is urgent!"
)
MIXES: list[dict[str, float]] = [{"redact": 1}, {"triage": 1}]


def make_chat(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


CHAT = make_chat(TICKET)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 96}


def say(client: openai.OpenAI, text: str = TICKET, **merge: Any) -> Any:
    return client.chat.completions.create(**make_chat(text), **GREEDY, extra_body={"merge": merge})


@pytest.fixture(scope="module")
def alone(client: openai.OpenAI) -> list[Any]:
    return [say(client, experts=mix) for mix in MIXES]


def test_each_segment_is_what_its_mix_says_alone(client: openai.OpenAI, alone: list[Any]) -> None:
    whole = say(client, segments=MIXES)
    texts = [one.choices[0].message.content for one in alone]
    assert texts[0] != texts[1]
    assert whole.choices[0].message.content == "\n".join(texts)
    assert whole.choices[0].finish_reason == "stop"
    counts = [one.usage.completion_tokens for one in alone]
    assert whole.usage.completion_tokens == sum(counts)
    assert whole.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert whole.merge["segments"] == [
        {"since": 0, "experts": {"redact": 1.0}},
        {"since": counts[0], "experts": {"triage": 1.0}},
    ]
    assert whole.merge["mix"] == alone[0].merge["mix"]


def test_a_stream_is_the_same_answer(client: openai.OpenAI, alone: list[Any]) -> None:
    stream = client.chat.completions.create(
        **CHAT,
        **GREEDY,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        extra_body={"merge": {"segments": MIXES}},
    )
    chunks: list[Any] = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == "\n".join(one.choices[0].message.content for one in alone)
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens == sum(o.usage.completion_tokens for o in alone)
    assert [len(one["experts"]) for one in chunks[-1].merge["segments"]] == [1, 1]


def test_bounds_are_of_the_whole_answer(client: openai.OpenAI, alone: list[Any]) -> None:
    first, second = (one.usage.completion_tokens for one in alone)
    for most in (first - 1, first, first + second - 1):
        cut = client.chat.completions.create(
            **CHAT, temperature=0, max_tokens=most, extra_body={"merge": {"segments": MIXES}}
        )
        assert cut.choices[0].finish_reason == ("length" if most != first else "stop")
        assert cut.usage is not None
        assert cut.usage.completion_tokens == most
    stopped = client.chat.completions.create(
        **CHAT, **GREEDY, stop=["category"], extra_body={"merge": {"segments": MIXES}}
    )
    text = alone[0].choices[0].message.content
    assert stopped.choices[0].message.content == f"{text}\n"
    assert stopped.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("more", [{"n": 2}, {"response_format": {"type": "json_object"}}])
def test_what_has_no_segments_is_refused(client: openai.OpenAI, more: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"merge\.segments"):
        client.chat.completions.create(
            **CHAT, max_tokens=9, **more, extra_body={"merge": {"segments": MIXES}}
        )


def test_the_gate_lets_two_experts_answer_a_request_that_wants_both(client: openai.OpenAI) -> None:
    found = say(client, DATED, policy="inline").merge
    ranked = sorted(found["scores"], key=lambda name: -found["scores"][name])
    assert found["experts"] == {ranked[0]: 1.0}
    assert set(ranked[:2]) == {"dates", "triage"}
    assert [list(one["experts"]) for one in found["segments"]] == [[n] for n in ranked[:2]]


def test_all_routes_that_generate_have_segments(demo: Demo, client: openai.OpenAI) -> None:
    merge = {"merge": {"segments": MIXES}}
    answer: Any = client.responses.create(
        model=MODEL, input=TICKET, temperature=0, max_output_tokens=96, extra_body=merge
    )
    assert len(answer.merge["segments"]) == 2
    assert "category=" in answer.output_text
    text: Any = client.completions.create(
        model=MODEL, prompt=[TICKET, "2 + 2"], max_tokens=8, temperature=0, extra_body=merge
    )
    assert [one["policy"] for one in text.merge["prompts"]] == ["explicit", "explicit"]
