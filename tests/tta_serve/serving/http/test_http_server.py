"""The HTTP server: bounds on what comes before a body, and an end that lets requests end."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tta_serve.evaluation.local_server import find_free_port
from tta_serve.exceptions import StartError
from tta_serve.serving.http import http_server
from tta_serve.serving.http.http_server import MOST_HEAD_BYTES, HttpServer

HOST = "127.0.0.1"
HEAD = b"GET /%s HTTP/1.1\r\nhost: x\r\n%s\r\n"


class Site:
    """Answers with the path and the length of the body.

    Attributes:
        gate: Open while requests may end.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        size = 0
        more = True
        while more:
            message: Message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await self.gate.wait()
        body = f"{scope['path']} {size}".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Line:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        """The body of the next answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        [length] = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        return await self.reader.readexactly(int(length.partition(b": ")[2]))

    async def rest(self) -> bytes:
        """All until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


Open = Callable[[], Awaitable[Line]]


def serving(
    run: Callable[[HttpServer, Site, Open], Awaitable[None]], app: ASGIApp | None = None
) -> None:
    async def go() -> None:
        site = Site()
        port = find_free_port()
        server = HttpServer(app or site, HOST, port)
        lines: list[Line] = []

        async def connect() -> Line:
            lines.append(Line(*await asyncio.open_connection(HOST, port)))
            return lines[-1]

        async with asyncio.timeout(30):
            await server.start()
            assert server.running
            try:
                await run(server, site, connect)
            finally:
                for line in lines:
                    line.writer.close()
                site.gate.set()
                await server.stop(5)
                assert not server.running

    asyncio.run(go())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.3)
    return 0.3


async def took(line: Line) -> float:
    """Seconds until the server closes a connection without a word."""
    start = asyncio.get_running_loop().time()
    assert await line.rest() == b""
    return asyncio.get_running_loop().time() - start


def test_requests_follow_one_another_on_a_connection() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        for name in (b"a", b"b", b"c"):
            await line.send(HEAD % (name, b""))
            assert await line.answer() == b"/%s 0" % name
        await line.send(HEAD % (b"d", b"") + HEAD % (b"e", b""))
        assert [await line.answer(), await line.answer()] == [b"/d 0", b"/e 0"]

    serving(run)


def test_its_answers_do_not_say_what_it_is() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        await line.send(HEAD % (b"a", b"connection: close\r\n"))
        assert b"\r\nserver:" not in (await line.rest()).lower()

    serving(run)


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET /x HTTP/1.1\r\n", b"GET /x HTTP/1.1\r\nhost: x\r\nx-a: b", b"\r\n\r\n"],
)
def test_who_does_not_finish_a_head_is_hung_up_on(short: float, sent: bytes) -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        await line.send(sent)
        assert short / 2 < await took(line) < 10 * short
        assert site.asked == []

    serving(run)


def test_who_sends_a_head_drop_by_drop_is_hung_up_on_too(short: float) -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()

        async def drip() -> None:
            await line.send(b"GET /x HTTP/1.1\r\n")
            while True:
                await line.send(b"x-a: b\r\n")
                await asyncio.sleep(short / 10)

        dripping = asyncio.create_task(drip())
        assert await took(line) < 10 * short
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)

    serving(run)


def test_a_second_head_has_the_same_time(short: float) -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        await line.send(HEAD % (b"a", b""))
        await line.answer()
        await line.send(b"GET /b HTT")
        assert short / 2 < await took(line) < 10 * short
        assert site.asked == ["/a"]

    serving(run)


def test_a_body_an_answer_and_a_pause_between_requests_may_take_longer(short: float) -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        await line.send(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab")
        await asyncio.sleep(2 * short)
        site.gate.clear()
        await line.send(b"cd")
        await asyncio.sleep(2 * short)
        site.gate.set()
        assert await line.answer() == b"/a 4"
        await asyncio.sleep(2 * short)
        await line.send(HEAD % (b"b", b""))
        assert await line.answer() == b"/b 0"

    serving(run)


def test_a_head_that_is_too_large_is_refused() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        for step in (1024, MOST_HEAD_BYTES * 2):
            line = await connect()
            await line.send(b"GET /x HTTP/1.1\r\nhost: x\r\nx-long: ")
            try:
                for _ in range(0, MOST_HEAD_BYTES * 2, step):
                    await line.send(b"x" * step)
                    await asyncio.sleep(0)
            except ConnectionError:
                pass
            said = await line.rest()
            assert said == b"" or said.startswith(b"HTTP/1.1 400")
        assert site.asked == []

    serving(run)


def test_many_small_headers_are_too_large_as_well_and_on_a_connection_that_is_used_again() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        await line.send(HEAD % (b"a", b""))
        await line.answer()
        await line.send(b"GET /x HTTP/1.1\r\nhost: x\r\n")
        try:
            for i in range(MOST_HEAD_BYTES // 4):
                await line.send(b"x-%d: 1\r\n" % i)
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        await line.rest()
        assert site.asked == ["/a"]

    serving(run)


def test_a_head_just_below_and_a_large_body_are_taken() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        await line.send(HEAD % (b"a", b"x-long: %s\r\n" % (b"x" * (MOST_HEAD_BYTES - 200))))
        assert await line.answer() == b"/a 0"
        body = b"x" * (3 << 20)
        await line.send(
            b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        assert await line.answer() == b"/b %d" % len(body)

    serving(run)


def test_a_head_and_a_large_body_may_come_at_once() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        body = b"x" * (MOST_HEAD_BYTES * 4)
        for name in (b"a", b"b"):
            line = await connect()
            await line.send(
                b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (name, len(body))
                + body
            )
            assert await line.answer() == b"/%s %d" % (name, len(body))

    serving(run)


def test_what_is_no_http_is_refused_and_others_are_served_on() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        for junk in (b"\x16\x03\x01\x02\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            line = await connect()
            await line.send(junk)
            assert (await line.rest()).startswith(b"HTTP/1.1 400")
        line = await connect()
        await line.send(HEAD % (b"a", b""))
        assert await line.answer() == b"/a 0"

    serving(run)


# Start and end.


def test_a_port_in_use_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_BIND_TRIES", 3)
    monkeypatch.setattr(http_server, "_BIND_PAUSE_S", 0.01)

    async def run() -> None:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            server = HttpServer(Site(), HOST, port)
            with pytest.raises(
                StartError,
                match=rf"127\.0\.0\.1:{port} cannot be listened on: Address already in use",
            ):
                await server.start()
            assert not server.running
            await server.stop(1)

    asyncio.run(run())


def test_a_port_that_is_left_in_the_meantime_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_BIND_PAUSE_S", 0.02)

    async def run() -> None:
        taken = socket.create_server((HOST, 0))
        server = HttpServer(Site(), HOST, taken.getsockname()[1])
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.1)
        assert not starting.done()
        taken.close()
        await asyncio.wait_for(starting, 5)
        assert server.running
        await server.stop(1)

    asyncio.run(run())


def test_servers_that_share_a_port_answer_there_in_turn_and_alone() -> None:
    async def run() -> None:
        sites = Site(), Site()
        port = find_free_port()
        servers = [HttpServer(site, HOST, port, shared=True) for site in sites]
        for server in servers:
            await server.start()
        await servers[0].stop(1)
        for _ in range(8):
            line = Line(*await asyncio.open_connection(HOST, port))
            line.writer.close()
        await servers[1].stop(1)

    asyncio.run(run())


async def ended(task: "asyncio.Task[Any]", within_s: float = 10) -> None:
    await asyncio.wait_for(task, within_s)


def test_stopping_waits_for_a_request_that_runs_and_takes_no_more() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        idle = await connect()
        site.gate.clear()
        await line.send(HEAD % (b"a", b""))
        while not site.asked:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop(20))
        await asyncio.sleep(0.5)
        assert not stopping.done()
        with pytest.raises(ConnectionRefusedError):
            await connect()
        assert await idle.rest() == b""
        site.gate.set()
        assert await line.answer() == b"/a 0"
        await ended(stopping)
        assert await line.rest() == b""

    serving(run)


def test_stopping_does_not_wait_for_ever() -> None:
    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        line = await connect()
        site.gate.clear()
        await line.send(HEAD % (b"a", b""))
        while not site.asked:
            await asyncio.sleep(0.01)
        await ended(asyncio.create_task(server.stop(0.3)), 5)
        assert not server.running

    serving(run)


def test_a_server_can_be_stopped_twice_or_before_it_has_started() -> None:
    async def run() -> None:
        server = HttpServer(Site(), HOST, find_free_port())
        assert not server.running
        await server.stop(1)
        await server.start()
        await server.stop(1)
        await server.stop(1)
        assert not server.running

    asyncio.run(run())


def test_signals_are_left_to_others() -> None:
    import signal

    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]

    async def run(server: HttpServer, site: Site, connect: Open) -> None:
        assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)][1] == before[1]

    serving(run)
