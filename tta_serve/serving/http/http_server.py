"""The HTTP server inside a replica: uvicorn, with bounds on what comes before a body."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tta_serve.exceptions import StartError

HEAD_TIMEOUT_S = 20.0
MOST_HEAD_BYTES = 64 * 1024
_KEEP_ALIVE_S = 90
_BIND_TRIES = 60
_BIND_PAUSE_S = 0.5
_BACKLOG = 1024
_TICK_S = 0.5


class HttpServer:
    """Serves an ASGI app from the running event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int, *, shared: bool = False) -> None:
        """Listen to nobody yet.

        Args:
            shared: Whether other processes may listen at the same port, each to a part of the
                connections.
        """
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="error",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._host = host
        self._port = port
        self._shared = shared
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        A replica that is being replaced may need a moment to free the address. Raises StartError if
        it does not.
        """
        listener = await self._bind()
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def stop(self, within_s: float) -> None:
        """Take no more connections, and give the requests that run so many seconds to end."""
        if self._task is None:
            return
        self._server.should_exit = True
        _, late = await asyncio.wait([self._task], timeout=within_s)
        if late:
            self._server.force_exit = True
            await asyncio.wait([self._task], timeout=1)

    async def _bind(self) -> socket.socket:
        for attempt in range(_BIND_TRIES):
            try:
                return _listen(self._host, self._port, shared=self._shared)
            except OSError as error:
                if attempt == _BIND_TRIES - 1:
                    raise StartError(
                        f"{self._host}:{self._port} cannot be listened on: {error.strerror}"
                    ) from None
            await asyncio.sleep(_BIND_PAUSE_S)
        raise AssertionError


def _listen(host: str, port: int, *, shared: bool) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG, reuse_port=shared)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for Ray."""
        yield

    async def main_loop(self) -> None:
        """As uvicorn's, which wakes ten times a second, whether anybody asks or not."""
        while not await self.on_tick(0):
            await asyncio.sleep(_TICK_S)


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request line and headers have to come within a time, and be of a size."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES and b"\r\n\r\n" not in data[:MOST_HEAD_BYTES]:
                self.send_400_response(
                    f"The request's headers are larger than {MOST_HEAD_BYTES} bytes."
                )
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._forget_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
