"""vLLM's own server, merging in place: middleware for its option `--middleware`.

Research code serves merges so: merge a request's mix into the weights, answer it, put the weights
back, take the next. What merges is the worker's extension `loadtest.sides.inplace`.
"""

import asyncio
import json

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadtest.common.workload import EXPERTS


class MergeInTurn:
    """Answers requests one after the other, each with the mix of its `merge.experts`.

    Args:
        app: What answers, which knows nothing of mixes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turn = asyncio.Lock()
        self._installed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as ASGI has it; what asks for nothing has no turn."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = json.loads(await Request(scope, receive).body())
        coefficients = body.pop("merge", {}).get("experts", {})
        text = json.dumps(body).encode()
        MutableHeaders(scope=scope)["content-length"] = str(len(text))
        async with self._turn:
            await self._answer(coefficients, scope, _replayed(text, receive), send)

    async def _answer(
        self, coefficients: dict[str, float], scope: Scope, receive: Receive, send: Send
    ) -> None:
        engine = scope["app"].state.engine_client
        if not self._installed:
            await engine.collective_rpc("bench_install", args=(str(EXPERTS),))
            self._installed = True
        try:
            await engine.collective_rpc("bench_merge", args=(coefficients,))
            await self._app(scope, receive, send)
        finally:
            await engine.collective_rpc("bench_restore")


def _replayed(text: bytes, receive: Receive) -> Receive:
    """Return what gives a body once, and then what comes from the client."""
    messages: list[Message] = [{"type": "http.request", "body": text, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
