"""Every failure as an OpenAI error body, in one place."""

import logging
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

from tta_serve.engine.ray_private import ErrorInfo, ErrorResponse, OpenAIHTTPException
from tta_serve.protocol import RequestError

logger = logging.getLogger("ray.serve")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict",
    429: "overloaded_error",
}
_RESTARTS = 503, "the engine stopped while it worked on this request and is being restarted; try again"
_OURS: tuple[tuple[type[Exception], int, str], ...] = (
    (BackPressureError, 429, "the server's queue is full; try again later"),
    (TimeoutError, 408, "the request took longer than the server allows"),
    (DeploymentUnavailableError, *_RESTARTS),
    (RayError, *_RESTARTS),
)


def body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def error_response(error: RequestError) -> ErrorResponse:
    """A client's mistake found in the replica, in the form Ray carries to the ingress."""
    return ErrorResponse(error=ErrorInfo(**body(error.status, str(error), error.param)["error"]))


def described(error: BaseException) -> tuple[int, str, str | None]:
    """HTTP status, message and parameter of anything that can end a request."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, RequestError):
        return error.status, str(error), error.param
    if isinstance(error, OpenAIHTTPException):
        return error.status_code, error.message, None
    if isinstance(error, StarletteHTTPException):
        return error.status_code, str(error.detail), None
    if type(error).__name__ == "EngineDeadError":
        return *_RESTARTS, None
    return next(
        ((status, message, None) for kind, status, message in _OURS if isinstance(error, kind)),
        (500, "internal server error", None),
    )


def answer(error: BaseException) -> JSONResponse:
    status, message, param = described(error)
    if status >= 500:
        logger.error("request failed", exc_info=error)
    return JSONResponse(body(status, message, param), status)


def install(app: FastAPI) -> None:
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return answer(error)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(body(400, f"the body is not JSON: {first['ctx']['error']}"), 400)
        place = ".".join(str(p) for p in first["loc"] if p != "body")
        return JSONResponse(body(400, f"{place or 'body'}: {first['msg']}", place or None), 400)

    app.add_exception_handler(RequestValidationError, on_invalid)
    for kind in (StarletteHTTPException, HTTPException, OpenAIHTTPException, RequestError, Exception):
        app.add_exception_handler(kind, on_error)
