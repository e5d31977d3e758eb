"""ASGI apps called by hand: what goes in, when it comes, and what comes out."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Got:
    """What an app sent."""

    raw: list[Message] = field(default_factory=list)
    """The messages."""

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        self.raw.append(message)

    @property
    def starts(self) -> list[Message]:
        return [one for one in self.raw if one["type"] == "http.response.start"]

    @property
    def status(self) -> int:
        [start] = self.starts
        return int(start["status"])

    @property
    def headers(self) -> dict[str, str]:
        [start] = self.starts
        return {key.decode(): value.decode("latin-1") for key, value in start["headers"]}

    @property
    def parts(self) -> list[bytes]:
        """Those with something in them."""
        bodies = [one for one in self.raw if one["type"] == "http.response.body"]
        return [one["body"] for one in bodies if one.get("body")]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def ended(self) -> bool:
        """With a last part, and nothing after it."""
        last = [
            one["type"] == "http.response.body" and not one.get("more_body", False)
            for one in self.raw
        ]
        return last[-1:] == [True] and sum(last) == 1

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """OpenAI's, and Anthropic's."""
        assert self.json["type"] == "error"
        assert self.json["error"].keys() == {"message", "type", "param", "code"}
        return self.json["error"]


def scope(method: str, path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Scope:
    """As uvicorn has it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [*headers],
        "state": {},
    }


def receiving(*parts: bytes, then: float | None = None) -> Receive:
    """The parts of a body; after it the client waits, or leaves after so many seconds."""
    last = max(len(parts) - 1, 0)
    bodies = parts or (b"",)

    async def messages() -> AsyncIterator[Message]:
        for i, body in enumerate(bodies):
            yield {"type": "http.request", "body": body, "more_body": i < last}
        await asyncio.sleep(3600 if then is None else then)
        yield {"type": "http.disconnect"}

    given = messages()

    async def receive() -> Message:
        return await anext(given)

    return receive


async def call(  # noqa: PLR0913 - one thing each
    app: ASGIApp,
    method: str,
    path: str,
    *parts: bytes,
    headers: Mapping[str, str | bytes] | None = None,
    receive: Receive | None = None,
    send: Send | None = None,
) -> Got:
    """An app's whole answer."""
    got = Got()
    raw = [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in (headers or {}).items()
    ]
    await app(scope(method, path, raw), receive or receiving(*parts), send or got.send)
    return got


def asked(app: ASGIApp, method: str, path: str, *parts: bytes, **more: Any) -> Got:
    """The same, in an event loop of its own."""
    return asyncio.run(call(app, method, path, *parts, **more))


def spoken(body: Any) -> bytes:
    """JSON as a client sends it."""
    return json.dumps(body).encode()
