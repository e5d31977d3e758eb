"""The FastAPI app that the ingress serves: error bodies, a bound on request size."""

from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tta_serve import errors


def make_app(max_request_bytes: int) -> FastAPI:
    app = FastAPI(title="tta-serve")
    errors.install(app)
    app.add_middleware(LimitBody, max_bytes=max_request_bytes)
    return app


class LimitBody:
    """Refuses a request body over `max_bytes` with 413, before it is parsed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        size = 0
        while not messages or messages[-1].get("more_body", False):
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self.max_bytes:
                refusal = errors.body(413, f"the request body is larger than {self.max_bytes} bytes")
                await JSONResponse(refusal, 413)(scope, receive, send)
                return
        queue = iter(messages)

        async def replay() -> Message:
            return next(queue, None) or await receive()

        await self.app(scope, replay, send)
