"""Answers: what vLLM said, byte for byte, with `merge` put into it, and nothing held back that need
not be.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.serve import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from tests.factories.asgi import Got, receiving, scope
from tta_serve.exceptions import RequestError
from tta_serve.protocol import MergeInfo
from tta_serve.serving.generation.answer import Answer
from tta_serve.serving.generation.merging import classify_outcome
from tta_serve.serving.http import openai_errors

INFO = MergeInfo(policy="retrieval", experts={"sql": 1.0}, mix="abc", arm="test/b")
OTHER = MergeInfo(policy="retrieval", experts={}, mix="base")
SAID = INFO.model_dump(mode="json")
DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


@dataclass
class Decided:
    """All that an answer reads of its exchange."""

    infos: list[MergeInfo] = field(default_factory=lambda: [INFO])
    error: BaseException | None = None
    asked: bool = True

    def merge(self) -> list[MergeInfo]:
        return self.infos


class Reading:
    """An answer, and what the client has got of it."""

    def __init__(
        self, infos: list[MergeInfo] | None = None, error: BaseException | None = None
    ) -> None:
        self.exchange = Decided([INFO] if infos is None else infos, error)
        self.got = Got()
        self.answer = Answer(cast(Any, self.exchange), self.got.send)

    async def start(
        self, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = STREAM
    ) -> None:
        start = {"type": "http.response.start", "status": status, "headers": [*headers]}
        await self.answer.send(start)

    async def say(self, body: bytes, *, more: bool = True) -> list[bytes]:
        """What the client gets by it."""
        before = len(self.got.parts)
        await self.answer.send({"type": "http.response.body", "body": body, "more_body": more})
        return self.got.parts[before:]

    async def all(self, chunks: Sequence[bytes]) -> list[bytes]:
        """A whole stream, as Starlette sends one."""
        await self.start()
        for one in chunks:
            await self.say(one)
        await self.say(b"", more=False)
        assert self.answer.ended
        assert self.got.ended
        return self.got.parts


def reading(run: Callable[[Reading], Awaitable[None]], **given: Any) -> None:
    async def go() -> None:
        await run(Reading(**given))

    asyncio.run(go())


def streamed(chunks: Sequence[bytes], **given: Any) -> list[bytes]:
    return asyncio.run(Reading(**given).all(chunks))


def chunk(text: str, end: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": end}
    return _event({"id": "c", "choices": [choice], **more})


def named(name: str, **more: Any) -> bytes:
    """An event as /v1/responses and /v1/messages have it."""
    return b"event: %s\n" % name.encode() + _event({"type": name, **more})


def _event(data: Any) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


def data_of(event: bytes) -> Any:
    return json.loads(event.partition(b"data: ")[2])


def bare(event: bytes) -> bytes:
    """A chunk without its merge field."""
    if event == DONE:
        return event
    data = data_of(event)
    data.pop("merge", None)
    return _event(data)


# A chat or a completion that is streamed.


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk("a"), chunk("b", "stop"), DONE],
        [chunk("a"), chunk("b", "length"), USAGE, DONE],
        [chunk("a"), chunk("b", "stop", 1), chunk("c", None, 0), chunk("d", "stop", 0), DONE],
        [chunk('say "finish_reason":"stop" and "choices":[] please'), chunk("b", "stop"), DONE],
        [chunk("a"), chunk("b", "stop")],
        [chunk("a", usage={"total_tokens": 1}), chunk("ü€😀", "stop"), USAGE, DONE],
        [chunk("", "stop"), DONE],
    ],
    ids=[
        "plain",
        "usage",
        "several-choices",
        "text-that-looks-like-an-end",
        "no-done",
        "usage-in-every-chunk",
        "nothing-but-an-end",
    ],
)
def test_merge_is_in_the_last_chunk_and_nothing_else_changes(chunks: list[bytes]) -> None:
    out = streamed(chunks)
    assert [bare(one) for one in out] == chunks
    data = [data_of(one) for one in out if one != DONE]
    assert ["merge" in one for one in data] == [False] * (len(data) - 1) + [True]
    assert data[-1]["merge"] == INFO.model_dump() == SAID


def test_a_stream_ends_once_and_has_no_length() -> None:
    async def run(reading: Reading) -> None:
        await reading.all([chunk("a"), chunk("b", "stop"), DONE])
        assert sum(not one.get("more_body", True) for one in reading.got.raw) == 1
        assert "content-length" not in reading.got.headers
        assert (reading.answer.status, classify_outcome(reading.answer)) == (200, "ok")

    reading(run)


def test_chunks_that_cannot_be_the_last_are_not_held_back() -> None:
    async def run(reading: Reading) -> None:
        await reading.start()
        assert await reading.say(chunk("a")) == [chunk("a")]
        assert await reading.say(chunk("b", usage={"total_tokens": 1})) == [
            chunk("b", usage={"total_tokens": 1})
        ]
        assert await reading.say(chunk("c", "stop", 1)) == []
        assert await reading.say(chunk("d")) == [chunk("c", "stop", 1), chunk("d")]
        assert await reading.say(chunk("e", "stop")) == [], "it may be the last"
        [last, done] = await reading.say(DONE)
        assert (bare(last), done) == (chunk("e", "stop"), DONE)

    reading(run)


def test_nothing_is_sent_before_the_first_chunk_whose_headers_say_what_was_decided() -> None:
    async def run(reading: Reading) -> None:
        await reading.start()
        assert await reading.say(b"") == []
        assert reading.got.raw == []
        assert reading.answer.status is None
        reading.exchange.infos = [INFO]  # the pass that makes the first token decides
        await reading.say(chunk("a"))
        headers = reading.got.headers
        assert (headers["x-tta-policy"], headers["x-tta-mix"], headers["x-tta-arm"]) == (
            "retrieval",
            "abc",
            "test/b",
        )
        assert headers["content-type"] == "text/event-stream; charset=utf-8"

    reading(run, infos=[])


def test_of_several_prompts_merge_is_the_firsts_with_all_under_prompts() -> None:
    last = data_of(streamed([chunk("a"), chunk("b", "stop"), DONE], infos=[INFO, OTHER])[-2])
    prompts = last["merge"].pop("prompts")
    assert last["merge"] == SAID
    assert prompts == [SAID, OTHER.model_dump(mode="json")]


def test_headers_say_what_is_true_of_all_prompts() -> None:
    async def run(reading: Reading) -> None:
        await reading.all([chunk("b", "stop"), DONE])
        assert reading.got.headers["x-tta-policy"] == "retrieval"
        assert not {"x-tta-mix", "x-tta-arm"} & reading.got.headers.keys()

    reading(run, infos=[INFO, OTHER])


# The other two kinds of stream.


def test_of_responses_the_last_event_has_merge_in_its_response_and_no_event_is_held() -> None:
    events = [
        named("response.created", response={"status": "in_progress", "text": '"choices":[]'}),
        named("response.output_text.delta", delta="ü"),
        named("response.output_text.done", text="ü"),
    ]
    last = named("response.completed", response={"status": "completed", "output": ["ü"]})

    async def run(reading: Reading) -> None:
        await reading.start()
        for one in events:
            assert await reading.say(one) == [one]
        [found] = await reading.say(last)
        assert found.startswith(b"event: response.completed\ndata: {")
        assert found.endswith(b"}\n\n")
        data = data_of(found)
        assert data["response"].pop("merge") == SAID
        assert data == data_of(last)
        assert await reading.say(b"", more=False) == []
        assert reading.answer.ended

    reading(run)


def test_what_comes_before_the_engine_was_asked_waits_until_headers_can_say_what_was_decided() -> (
    None
):
    created = named("response.created", response={})
    delta = named("response.output_text.delta", delta="a")

    async def run(reading: Reading) -> None:
        await reading.start()
        assert await reading.say(created) == []
        reading.exchange.infos = [INFO]
        assert await reading.say(delta) == [created, delta]
        assert reading.got.headers["x-tta-mix"] == "abc"
        assert await reading.say(delta) == [delta]

    async def failing(reading: Reading) -> None:
        await reading.start()
        await reading.say(created)
        await reading.answer.fail(RequestError("full", status=429))
        assert (reading.got.status, reading.got.error["message"]) == (429, "full")

    async def undecided(reading: Reading) -> None:
        assert await reading.all([created, delta]) == [created, delta]

    for each in (run, failing, undecided):
        reading(each, infos=[])


@pytest.mark.parametrize("name", ["response.incomplete", "response.failed"])
def test_responses_that_end_otherwise_say_it_too(name: str) -> None:
    [found] = streamed([named(name, response={"status": name})])
    assert data_of(found)["response"]["merge"] == SAID


def test_of_messages_the_last_event_has_merge_beside_its_type_and_no_event_is_held() -> None:
    events = [
        named("message_start", message={"id": "m"}),
        named("content_block_delta", delta={"type": "text_delta", "text": "a"}),
        named("message_delta", delta={"stop_reason": "end_turn"}),
    ]

    async def run(reading: Reading) -> None:
        await reading.start()
        for one in events:
            assert await reading.say(one) == [one]
        [found] = await reading.say(named("message_stop"))
        assert found.startswith(b"event: message_stop\ndata: {")
        assert data_of(found) == {"type": "message_stop", "merge": SAID}
        await reading.say(b"", more=False)
        assert reading.answer.ended

    reading(run)


# An answer that is no stream.


def whole(body: bytes, status: int = 200, *, parts: int = 1, **given: Any) -> Reading:
    found = Reading(**given)
    size = str(len(body)).encode()
    headers = [(b"content-length", size), (b"content-type", b"application/json")]

    async def run() -> None:
        await found.start(status, headers)
        step = -(-len(body) // parts)
        for at in range(0, len(body), step):
            assert found.got.raw == [], "sent once it is whole"
            await found.say(body[at : at + step], more=at + step < len(body))

    asyncio.run(run())
    assert found.got.ended
    assert found.got.headers["content-length"] == str(len(found.got.body))
    return found


@pytest.mark.parametrize("parts", [1, 3])
def test_a_json_answer_has_merge_as_its_last_field_and_is_else_the_same_byte_for_byte(
    parts: int,
) -> None:
    body = (
        '{"id":"c","choices":[{"message":{"content":"ü }"}}],"usage":{"total_tokens":3}}'.encode()
    )
    found = whole(body, parts=parts).got
    assert found.body.startswith(body[:-1] + b',"merge":{')
    assert found.json["merge"] == SAID
    assert found.headers["x-tta-mix"] == "abc"


def test_a_json_answer_to_several_prompts_says_all() -> None:
    found = whole(b'{"id":"c"}', infos=[INFO, OTHER]).got
    assert [one["mix"] for one in found.json["merge"]["prompts"]] == ["abc", "base"]
    assert "x-tta-mix" not in found.headers


def test_merge_can_say_any_text() -> None:
    info = INFO.model_copy(update={"reason": 'a "b" \\ ü \n', "warnings": ["x}"]})
    assert whole(b'{"id":"c"}', infos=[info]).got.json["merge"]["reason"] == info.reason
    assert data_of(streamed([chunk("b", "stop"), DONE], infos=[info])[0])[
        "merge"
    ] == info.model_dump(mode="json")


def test_an_errors_answer_has_no_merge() -> None:
    body = b'{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}'
    found = whole(body, 400)
    assert found.got.body == body
    assert (found.answer.status, classify_outcome(found.answer)) == (400, "client_error")


def test_an_answer_that_is_not_json_stays_as_it_is() -> None:
    assert whole(b"plain").got.body == b"plain"


def test_an_error_that_vllm_put_into_words_has_the_status_that_is_ours() -> None:
    """/v1/messages turns every exception into a JSON answer by itself, whose statuses are two: 400
    and 500.
    """
    dead = EngineDeadError()
    full = RequestError("policy 'x': full", status=429, param="merge")
    for error, status, param in ((dead, 503, None), (full, 429, "merge")):
        said = create_error_response(error)
        found = whole(said.model_dump_json().encode(), said.error.code, error=error).got
        assert found.status == status
        assert found.error["param"] == param


# What goes wrong.


def error_event(code: int = 400, message: str = "no such tool") -> bytes:
    error = {"message": message, "type": "BadRequestError", "param": "tools", "code": code}
    return f"data: {json.dumps({'error': error})}\n\n".encode()


def test_an_error_before_the_first_token_becomes_a_status_of_an_answer_that_is_no_stream() -> None:
    async def run(reading: Reading) -> None:
        await reading.all([error_event(), DONE])
        found = reading.got
        assert (found.status, found.error["message"], found.error["param"]) == (
            400,
            "no such tool",
            "tools",
        )
        assert found.headers["content-type"] == "application/json"
        assert found.headers["content-length"] == str(len(found.body))
        assert classify_outcome(reading.answer) == "client_error"

    reading(run)


def test_what_the_engine_or_a_policy_raised_goes_before_what_vllm_made_of_it() -> None:
    error = RequestError("the queue is full", status=429, headers={"retry-after": "1"})

    async def run(reading: Reading) -> None:
        await reading.all([error_event(400, "the queue is full"), DONE])
        assert (reading.got.status, reading.got.error["code"]) == (429, "overloaded")
        assert reading.got.headers["retry-after"] == "1"

    reading(run, error=error)


@pytest.mark.parametrize(
    "event",
    [
        error_event(500, "KeyError at 0x7f"),
        named("error", error={"type": "internal_error", "message": "KeyError at 0x7f"}),
        b'data: {"error"',
        b'data: {"error": "KeyError at 0x7f"}\n\n',
        b"event: error\ndata: KeyError at 0x7f\n\n",
    ],
)
def test_an_error_inside_is_500_and_says_nothing_of_it(event: bytes) -> None:
    async def run(reading: Reading) -> None:
        await reading.all([event])
        assert (reading.got.status, reading.got.error["message"]) == (500, "internal server error")
        assert b"0x7f" not in reading.got.body
        assert classify_outcome(reading.answer) == "error"

    reading(run)


def test_an_error_later_becomes_exactly_one_event_which_is_the_last_thing_sent() -> None:
    async def run(reading: Reading) -> None:
        out = await reading.all([chunk("a"), error_event(), DONE])
        assert out[0] == chunk("a")
        assert len(out) == 2
        assert data_of(out[1])["error"]["message"] == "no such tool"
        assert data_of(out[1])["type"] == "error"
        assert reading.got.status == 200
        assert classify_outcome(reading.answer) == "client_error"
        await reading.answer.fail(RuntimeError("x"))
        await reading.answer.send(
            {"type": "http.response.body", "body": b"more", "more_body": False}
        )
        assert reading.got.parts == out

    reading(run)


def test_an_error_inside_a_stream_counts_as_one() -> None:
    async def run(reading: Reading) -> None:
        await reading.all([chunk("a"), b'data: {"error": {"message": "x"}}\n\n'])
        assert classify_outcome(reading.answer) == "error"

    reading(run)
    reading(lambda good: _counted(good, [chunk("a")], "ok"))


async def _counted(answer: Reading, chunks: list[bytes], outcome: str) -> None:
    await answer.all(chunks)
    assert classify_outcome(answer.answer) == outcome


def test_a_stream_of_messages_that_fails_ends_with_an_event_that_anthropics_clients_know() -> None:
    """They look at nothing but the event's name, and pass over an event without one."""

    async def run(reading: Reading) -> None:
        failed = named("error", error={"type": "internal_error", "message": "x"})
        out = await reading.all([named("message_start", message={}), failed])
        assert out[-1].startswith(b"event: error\ndata: ")
        assert data_of(out[-1])["type"] == "error"

    reading(run)


def test_what_vllms_app_raises_is_an_answer_or_the_last_event() -> None:
    async def before(reading: Reading) -> None:
        await reading.answer.fail(RequestError("no", status=404, param="model"))
        assert (reading.got.status, reading.got.error["code"]) == (404, "model_not_found")
        assert reading.answer.ended

    async def unsent(reading: Reading) -> None:
        await reading.start()
        await reading.answer.fail(KeyError("x"))
        assert reading.got.status == 500
        assert reading.got.headers["content-type"] == "application/json"

    async def half_gathered(reading: Reading) -> None:
        await reading.start(
            200, [(b"content-type", b"application/json"), (b"content-length", b"99")]
        )
        await reading.say(b'{"id":')
        await reading.answer.fail(KeyError("x"))
        assert (reading.got.status, reading.got.error["code"]) == (500, "internal_error")
        assert reading.got.headers["content-length"] == str(len(reading.got.body))

    async def later(reading: Reading) -> None:
        await reading.start()
        await reading.say(chunk("a"))
        await reading.answer.fail(EngineDeadError())
        assert data_of(reading.got.parts[-1])["error"]["code"] == "unavailable"
        assert reading.got.ended
        assert classify_outcome(reading.answer) == "error"

    for run in (before, unsent, half_gathered, later):
        reading(run)


def test_an_answer_that_was_cut_off_is_counted_as_aborted() -> None:
    """By the server's time for requests, for one."""

    async def run(reading: Reading) -> None:
        assert classify_outcome(reading.answer) == "aborted"
        await reading.start()
        assert classify_outcome(reading.answer) == "aborted"
        await reading.say(chunk("a"))
        assert classify_outcome(reading.answer) == "aborted"

    reading(run)


def test_an_answer_whose_client_has_left_is_counted_as_aborted_whatever_vllm_makes_of_it() -> None:
    async def run(reading: Reading) -> None:
        receive = reading.answer.listening(receiving(b"{}", then=0))
        assert (await receive())["body"] == b"{}"
        assert not reading.answer.left
        assert (await receive())["type"] == "http.disconnect"
        assert reading.answer.left
        await reading.all([chunk("a"), chunk("b", "stop"), DONE])
        assert classify_outcome(reading.answer) == "aborted"

    async def after_all(reading: Reading) -> None:
        await reading.all([chunk("a"), chunk("b", "stop"), DONE])
        await reading.answer.listening(receiving(then=0))()
        assert classify_outcome(reading.answer) == "ok"

    reading(run)
    reading(after_all)


# Through the parts of FastAPI and Starlette that vLLM's answers pass.


def through(response: Callable[[], Response], error: BaseException | None = None) -> Reading:
    """What a route's response becomes in an app that has our handlers.

    Args:
        error: What the exchange noticed.
    """
    app = FastAPI()
    found = Reading(error=error)

    @app.post("/")
    async def route() -> Response:
        return response()

    openai_errors.install(app)

    async def run() -> None:
        try:
            await app(scope("POST", "/"), receiving(b"{}"), found.answer.send)
        except Exception as raised:
            await found.answer.fail(raised)

    asyncio.run(run())
    return found


def test_starlette_sends_one_message_for_each_chunk() -> None:
    chunks = [chunk("a"), chunk("b", "stop"), USAGE, DONE]

    async def given() -> AsyncIterator[bytes]:
        for one in chunks:
            yield one

    found = through(lambda: StreamingResponse(given(), media_type="text/event-stream"))
    assert [bare(one) for one in found.got.parts] == chunks
    assert data_of(found.got.parts[-2])["merge"] == SAID
    assert found.answer.ended


def test_starlettes_json_can_be_added_to() -> None:
    assert through(lambda: JSONResponse({"id": "ü"})).got.json == {"id": "ü", "merge": SAID}


def test_a_refusal_in_a_stream_that_has_begun_is_still_that_refusal() -> None:
    """/v1/responses does not put errors into words: they come as exceptions, which Starlette wraps
    in one of its own.
    """
    error = RequestError(
        "the json that the answer is to keep to cannot be compiled", param="response_format"
    )

    async def given() -> AsyncIterator[bytes]:
        yield named("response.created", response={})
        raise error

    found = through(lambda: StreamingResponse(given(), media_type="text/event-stream"), error)
    assert len(found.got.parts) == 2
    said = data_of(found.got.parts[1])["error"]
    assert (said["message"], said["param"]) == (str(error), "response_format")
    assert classify_outcome(found.answer) == "client_error"


def test_what_fails_before_the_engine_was_asked_is_the_requests_fault() -> None:
    async def refused(reading: Reading) -> None:
        reading.exchange.asked = False
        await reading.answer.fail(KeyError("role"))

    reading = Reading([])
    asyncio.run(refused(reading))
    assert reading.answer.status == 400
