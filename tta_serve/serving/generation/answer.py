"""What a client gets: vLLM's answer, byte for byte, with `merge` put into it.

Nothing is sent before the first part of the answer is there. So headers can say what was done, also
of a mix that is decided in the pass that makes the first token, and a request that fails before its
first token gets an error's status, streamed or not.

    application/json      {..., "merge": {...}}
    chat, completions     data: {..., "merge": {...}}      the last chunk before data: [DONE]
    responses             event: response.completed        merge in its `response`
    messages              event: message_stop              merge beside its `type`
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Send

from tta_serve.protocol import MergeInfo
from tta_serve.serving.generation.exchange import Exchange
from tta_serve.serving.http.openai_errors import Failure, failure_of, reshaped, unread

_DONE = b"data: [DONE]"
_ENDS_CHOICE = (b'"finish_reason":"', b'"choices":[]')
_ENDS_RESPONSE = (
    b"event: response.completed",
    b"event: response.incomplete",
    b"event: response.failed",
)
_ENDS_MESSAGE = b"event: message_stop"
_ERRORS = (b'data: {"error"', b"event: error", b'data: {"type":"error"')


class Answer:
    """Where vLLM's app sends its answer.

    Attributes:
        status: None until something was sent.
        error: The code of what went wrong, None if nothing did.
        ended: Whether all of it was.
        left: Whether the client had gone before.
    """

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self._start: Message | None = None
        self._whole = b""
        self._early: list[bytes] = []
        self._held: bytes | None = None
        self.status: int | None = None
        self.error: str | None = None
        self.ended = self.left = False

    def listening(self, receive: Receive) -> Receive:
        """The same, noticing when the client goes."""

        async def listen() -> Message:
            message = await receive()
            self.left |= message["type"] == "http.disconnect" and not self.ended
            return message

        return listen

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if self.ended:
            return
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            assert self._start is not None
            body = message.get("body", b"")
            last = not message.get("more_body", False)
            if self._start["status"] < 400 and _kind(self._start) == "text/event-stream":
                await self._stream(body, last)
            else:
                await self._gather(body, last)

    async def fail(self, error: BaseException) -> None:
        """End with what went wrong, as an answer or as the last event of a stream."""
        if self.ended:
            return
        failure = (
            failure_of(self._exchange.error or error) if self._exchange.asked else unread(error)
        )
        if self.status is None:
            await self._refuse(failure)
        else:
            await self._break_off(failure)

    async def _gather(self, body: bytes, last: bool) -> None:
        """An answer that is no stream is sent once it is whole."""
        assert self._start is not None
        self._whole += body
        if not last:
            return
        if self._start["status"] >= 400 and self._exchange.error is not None:
            await self._refuse(failure_of(self._exchange.error))
            return
        if self._start["status"] == 500 and not self._exchange.asked:
            self._start["status"] = (
                400  # vLLM's route for messages puts all failures into words itself
            )
        info = self._exchange.merge()
        if self._start["status"] < 400 and info and self._whole.endswith(b"}"):
            self._whole = _spliced(self._whole, _merge(info))
            MutableHeaders(raw=self._start["headers"])["content-length"] = str(len(self._whole))
        await self._begin(info)
        await self._emit(self._whole, last=True)

    async def _stream(self, body: bytes, last: bool) -> None:
        if body.startswith(_ERRORS):
            await self._break(body)
            return
        if body:
            self._early.append(body)
        if not last and self.status is None and not self._exchange.merge():
            # An event from before the engine was asked: nothing is known yet that headers could say
            return
        if self.status is None:
            await self._begin(self._exchange.merge())
        early, self._early = self._early, []
        for chunk in [out for one in early for out in self._let_through(one)]:
            await self._emit(chunk)
        if last:
            held = _spliced_event(self._held, self._said()) if self._held else b""
            await self._emit(held, last=True)

    def _let_through(self, chunk: bytes) -> list[bytes]:
        """What may be sent now.

        A chunk that may be the last one is held until the next shows whether it was.
        """
        held, self._held = self._held, None
        if chunk.startswith(_DONE):
            return [*([_spliced_event(held, self._said())] if held else []), chunk]
        out = [held] if held else []
        if any(end in chunk for end in _ENDS_CHOICE):
            self._held = chunk
        elif chunk.startswith(_ENDS_RESPONSE):
            out.append(_in_response(chunk, self._exchange.merge()))
        elif chunk.startswith(_ENDS_MESSAGE):
            out.append(_spliced_event(chunk, self._said()))
        elif chunk:
            out.append(chunk)
        return out

    def _said(self) -> bytes:
        return _merge(self._exchange.merge())

    async def _break(self, event: bytes) -> None:
        """vLLM says in a stream what went wrong: we say it, and nothing more."""
        error = self._exchange.error
        failure = failure_of(error) if error is not None else _read_error(event)
        if self.status is None:
            await self._refuse(failure)
        else:
            await self._break_off(failure)

    async def _break_off(self, failure: Failure) -> None:
        """End a stream that has begun."""
        await self._emit(failure.event(), last=True)
        self.status, self.error = failure.status, failure.code

    async def _refuse(self, failure: Failure) -> None:
        self.error = failure.code
        body = json.dumps(failure.body()).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **failure.headers,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._start = {"type": "http.response.start", "status": failure.status, "headers": raw}
        await self._begin(())
        await self._emit(body, last=True)

    async def _begin(self, info: Sequence[MergeInfo]) -> None:
        """Send the status and the headers, if that is still to be done."""
        if self.status is not None:
            return
        assert self._start is not None
        self.status = self._start["status"]
        self._start["headers"] = list(self._start.get("headers", []))
        MutableHeaders(raw=self._start["headers"]).update(_headers(info))
        await self._send(self._start)

    async def _emit(self, body: bytes, *, last: bool = False) -> None:
        self.ended = last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


def _kind(start: Message) -> str:
    headers = MutableHeaders(raw=list(start.get("headers", [])))
    return headers.get("content-type", "").partition(";")[0]


def _headers(info: Sequence[MergeInfo]) -> Mapping[str, str]:
    """Of several prompts, what is said of all."""
    each = [one.headers() for one in info]
    return (
        {name: value for name, value in each[0].items() if all(e.get(name) == value for e in each)}
        if each
        else {}
    )


def _merge(info: Sequence[MergeInfo]) -> bytes:
    """`merge` as JSON: of several prompts that of the first, and of all under `prompts`."""
    said: dict[str, Any] = info[0].model_dump(mode="json") if info else {}
    if len(info) > 1:
        said["prompts"] = [one.model_dump(mode="json") for one in info]
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


def _spliced(json_object: bytes, merge: bytes) -> bytes:
    """A JSON object with one member more."""
    return json_object[:-1] + b',"merge":' + merge + b"}"


def _spliced_event(chunk: bytes, merge: bytes) -> bytes:
    """An event whose data is a JSON object, with one member more."""
    event = chunk.rstrip()
    return _spliced(event, merge) + chunk[len(event) :] if event.endswith(b"}") else chunk


def _in_response(chunk: bytes, info: Sequence[MergeInfo]) -> bytes:
    head, _, data = chunk.partition(b"data: ")
    event = json.loads(data)
    event["response"]["merge"] = json.loads(_merge(info))
    return (
        head
        + b"data: "
        + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        + b"\n\n"
    )


def _read_error(event: bytes) -> Failure:
    try:
        said = json.loads(event.partition(b"data: ")[2])
        code = said["error"].get("code") or said.get("code") or 500
        return reshaped(int(code), said)
    except (ValueError, KeyError, TypeError, AttributeError):
        return reshaped(500, None)
