"""Every failure as an OpenAI error: its status, its words, its parameter.

RequestError            the client's mistake, found by us: its own status and parameter
StoreError              what the store refuses: 404, 409, 410 or 412 by its kind
VLLMClientError         the client's mistake, found by vLLM
RequestValidationError  a body that vLLM's or our models refuse
TimeoutError            408     the request took longer than the server allows
EngineDeadError         503     the engine is being restarted
anything else           500
"""

import json
import logging
from http import HTTPStatus
from typing import Any

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve import create_error_response
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from tta_serve.engine.client.engine_client import OWNER
from tta_serve.exceptions import RequestError
from tta_serve.serving.reading.routes import GENERATES, TOKENIZES
from tta_serve.serving.reading.validation import explain_validation
from tta_serve.store.errors import (
    ConflictError,
    StaleError,
    StoreError,
    TooLateError,
    UnknownError,
)

logger = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict",
    429: "overloaded_error",
}
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    413: "request_too_large",
    429: "overloaded",
    500: "internal_error",
    503: "unavailable",
}
_STORE_STATUS: dict[type[StoreError], int] = {
    UnknownError: 404,
    ConflictError: 409,
    TooLateError: 410,
    StaleError: 412,
}
_READ = frozenset({*GENERATES, *TOKENIZES})
_LOGGED = "tta_logged"
"""The attribute of an exception that was logged: it passes several layers."""
_RESTARTS = "the engine stopped while it worked on this request and is being restarted; try again"
_INTERNAL = "internal server error"


class Failure(Exception):
    """What a client hears of a failure.

    Args:
        status: Of HTTP.
        code: A short name of the kind, for programs.
        headers: That go with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or _code(status, param)
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """In OpenAI's shape, which Anthropic's clients read too: theirs wants `type` beside it."""
        kind = _TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"type": "error", "error": error}

    def event(self) -> bytes:
        """Return it as the last event of a stream.

        Its name is for Anthropic's clients, which pass over events without one.
        """
        return f"event: error\ndata: {json.dumps(self.body())}\n\n".encode()

    def response(self) -> Response:
        return JSONResponse(self.body(), self.status, self.headers)


def _code(status: int, param: str | None) -> str:
    if status == HTTPStatus.NOT_FOUND and param == "model":
        return "model_not_found"
    return _CODES.get(status) or HTTPStatus(status).name.lower()


def failure_of(error: BaseException) -> Failure:
    """What a client hears of anything that can end a request; what is ours is logged."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, EngineGenerateError) and error.__cause__ is not None:
        return failure_of(error.__cause__)
    found = _of_client(error) or _of_server(error)
    if found.status >= HTTPStatus.INTERNAL_SERVER_ERROR and _LOGGED not in vars(error):
        vars(error)[_LOGGED] = True
        logger.error("request failed", exc_info=error)
    return found


def unread(error: BaseException) -> Failure:
    """Return what a client hears of a failure before the engine was asked.

    vLLM could not make a prompt of the request.

    It looks at much of a request only then, and trips over what is not as it thinks.
    """
    known = _of_client(error)
    if known is not None or isinstance(error, (TimeoutError, EngineDeadError, RayError)):
        return known or failure_of(error)
    logger.warning("a request could not be read", exc_info=error)
    return Failure(
        400,
        f"a part of the request is missing, or of another kind than it should be ({error!r:.200})",
    )


def store_status(error: StoreError) -> int:
    """Return the HTTP status of what the store refuses."""
    return _STORE_STATUS.get(type(error), 400)


def _of_client(error: BaseException) -> Failure | None:
    if isinstance(error, RequestError):
        return Failure(error.status, str(error), error.param, headers=error.headers)
    if isinstance(error, StoreError):
        return Failure(store_status(error), str(error))
    if isinstance(error, (RequestValidationError, pydantic.ValidationError)):
        message, param = explain_validation(error.errors(), getattr(error, "body", None))
        return Failure(400, message, param)
    if isinstance(error, HTTPException):
        return Failure(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, RecursionError):
        return Failure(400, "a part of the request is nested too deeply, or refers to itself")
    return _by_vllm(error) if _blames_client(error) else None


def _blames_client(error: BaseException) -> bool:
    """Whether vLLM raised this for a mistake of the client.

    It has kinds of its own for most of them, and raises Python's for the others.
    """
    if isinstance(error, (VLLMClientError, GracefulHTTPError)):
        return True
    known = isinstance(
        error, (ValueError, TypeError, OverflowError, NotImplementedError)
    ) or _is_template(error)
    if known:
        logger.warning("a request was refused", exc_info=error)
    return known


def _of_server(error: BaseException) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure(408, "the request took longer than the server allows", code="timeout")
    if isinstance(error, (EngineDeadError, RayError)):
        return Failure(503, _RESTARTS, headers={"retry-after": "30"})
    return Failure(500, _INTERNAL)


def _by_vllm(error: BaseException) -> Failure:
    said = create_error_response(error).error
    return Failure(said.code, said.message or "the request cannot be used", said.param)


def _is_template(error: BaseException) -> bool:
    return any(kind.__name__ == "TemplateError" for kind in type(error).__mro__)


def reshaped(status: int, said: Any, headers: dict[str, str] | None = None) -> Failure:
    """Return the failure that another layer has put in words.

    vLLM has a shape of its own, Ray says it in plain text.
    """
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict):
        message = str(error.get("message") or "")
        param = error.get("param")
    else:
        detail = said.get("detail") if isinstance(said, dict) else said
        message = detail if isinstance(detail, str) else ""
        param = None
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        message = _INTERNAL if status != HTTPStatus.NOT_IMPLEMENTED else message
    return Failure(status, message or HTTPStatus(status).phrase, param, headers=headers)


def install(app: FastAPI) -> None:
    """Let an app answer all its failures in this way, in place of its own handlers."""

    async def on_error(request: Request, error: Exception) -> Response:
        owner = OWNER.get()
        reads = request.scope["path"] in _READ and not (owner is not None and owner.asked)
        return (unread(error) if reads else failure_of(error)).response()

    for kind in (
        *app.exception_handlers,
        RequestValidationError,
        HTTPException,
        RequestError,
        StoreError,
        Exception,
    ):
        app.exception_handlers[kind] = on_error
