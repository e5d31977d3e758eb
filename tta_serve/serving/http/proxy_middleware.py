"""What stands before Ray's own layer, where Ray serves a replica's app.

Ray imports this in every process that it serves from, so it imports nothing that is not needed for
that; vLLM, for one, sets up logging anew when it is imported, which Ray's proxy does not survive.
"""

import re

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

FOR_RAY = re.compile(
    rb"x-request-timeout-seconds|x-request-disconnect-disabled"
    rb"|serve[-_]multiplexed[-_]model[-_]id|x-forwarded-prefix",
    re.IGNORECASE,
)
"""Headers by which Ray would take orders. A session is the client's to name."""

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
"""What a client may call its request."""


class HeaderFilter:
    """Drops the headers that Ray would obey, and those on which it would fail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": [h for h in scope["headers"] if _may_pass(*h)]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray puts around its own layer before it serves."""
    return [Middleware(HeaderFilter)]


def _may_pass(name: bytes, value: bytes) -> bool:
    if name.lower() == b"x-request-id":
        return REQUEST_ID.fullmatch(value) is not None
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return FOR_RAY.fullmatch(name) is None
