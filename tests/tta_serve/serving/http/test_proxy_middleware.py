"""What reaches Ray's own layer of a request's headers."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from tta_serve.serving.http.proxy_middleware import HeaderFilter, middlewares


def passed(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "headers": list(headers)}
    asyncio.run(HeaderFilter(app)(scope, receive, send))
    found: list[tuple[bytes, bytes]] = seen[0]["headers"]
    return found


@pytest.mark.parametrize(
    "header",
    [
        (b"x-request-timeout-seconds", b"0.1"),
        (b"X-Request-Disconnect-Disabled", b"?1"),
        (b"serve-multiplexed-model-id", b"a"),
        (b"serve_multiplexed_model_id", b"a"),
        (b"x-forwarded-prefix", b"/a"),
        (b"user-agent", b"\xff\xfe"),
        (b"x-request-id", b"a" * 129),
        (b"x-request-id", b"with a space"),
    ],
)
def test_orders_to_ray_and_what_it_cannot_read_are_dropped(header: tuple[bytes, bytes]) -> None:
    assert passed(header, (b"accept", b"*/*")) == [(b"accept", b"*/*")]


def test_what_is_the_clients_to_say_passes() -> None:
    said = [
        (b"x-session-id", b"s"),
        (b"x-request-id", b"mine"),
        (b"x-request-timeout", b"2"),
        (b"content-encoding", b"gzip"),
        (b"authorization", b"Bearer k"),
    ]
    assert passed(*said) == said


def test_ray_is_given_the_filter() -> None:
    assert [str(middleware.cls) for middleware in middlewares()] == [str(HeaderFilter)]
