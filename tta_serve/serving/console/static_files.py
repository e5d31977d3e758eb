"""The console's files over HTTP. They hold no secret, and are served without a key."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "static"
HEADERS = {
    # Scripts and styles are the page's own files, and nothing that a server says becomes markup.
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # A browser asks each time whether a file has changed, by its ETag.
    "cache-control": "no-cache",
}


def console_router() -> APIRouter:
    """Return the routes of the console."""
    router = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=FOLDER)

    async def send(name: str, request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response

    @router.get("/console")
    async def page(request: Request) -> Response:
        """The page itself."""
        return await send("index.html", request)

    @router.get("/console/{name:path}")
    async def file(request: Request, name: str) -> Response:
        """A style, a script or a picture of it."""
        return await send(name, request)

    return router
