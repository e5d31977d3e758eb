"""A server of our own on this machine, for as long as somebody asks it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tta_serve.config.sections import ServeConfig

_PORTS = (10_000, 32_000)


def find_free_port() -> int:
    """Return a port of this machine that nobody listens on now.

    It lies below those that Linux gives to whoever asks for any port (32768 to 60999), of which one
    of Ray's processes could get it before the server listens.
    """
    while True:
        port = random.randrange(*_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def serve_locally(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """Serve a config on a free port of this machine meanwhile.

    Yields:
        The server's address and its admin key.

    Raises:
        StartError: The server does not start.
    """
    from tta_serve.serving.launch import managed

    place = {"host": "127.0.0.1", "port": find_free_port()}
    server = config.server.model_copy(update=place)
    with managed(config.model_copy(update={"server": server})) as access:
        yield access
