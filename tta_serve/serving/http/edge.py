"""The outermost layer of the HTTP side.

In: headers that no client may set are gone; a path has no slash at its end; HEAD is GET; a body is
whole, unpacked and, where JSON is wanted, has been read. Nothing of a body is looked at before the
key. Out: every failure has OpenAI's shape, whoever found it; every
answer has the request's id.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tta_serve import metrics
from tta_serve.config.sections import ServerConfig
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import CALLER, KeyRing, TokenLimits, is_management
from tta_serve.serving.http.body import ClientLeft, read_body, read_json
from tta_serve.serving.http.openai_errors import Failure, failure_of, reshaped
from tta_serve.serving.reading.request import REQUEST, GenerateRequest
from tta_serve.telemetry.request_summary import REQUEST_ID, SUMMARY, RequestSummary

NOT_FROM_CLIENTS = re.compile(
    r"x-request-timeout-seconds|x-request-disconnect-disabled|x-session-id|x-data-parallel-rank"
    r"|x-vllm-priority|serve[-_]multiplexed[-_]model[-_]id|x-serve-.*|x-forwarded-prefix"
    r"|content-encoding|endpoint-load-metrics-format"
)
"""Headers by which Ray or vLLM would take orders. `x-session-id` is read here, and no further."""

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MOST_ERROR_BYTES = 1 << 20
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass
class EdgeRules:
    """What the edge holds requests to; both may be replaced while it serves."""

    config: ServerConfig
    keys: KeyRing
    """Who may ask."""


class Edge:
    """An ASGI app around all others.

    Args:
        managed: Whether management is to be had here, too.
        says_id: Whether answers get the request's id here; not where Ray adds it.
    """

    def __init__(
        self, app: ASGIApp, rules: EdgeRules, *, managed: bool = True, says_id: bool = True
    ) -> None:
        self._app = app
        self._rules = rules
        self._managed = managed
        self._says_id = says_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _decoded(scope["headers"])
        name = headers.get("x-request-id", "")
        name = name if _ID.fullmatch(name) else uuid.uuid4().hex
        summary = RequestSummary(name, scope["method"], scope["path"])
        without_body = scope["method"] == "HEAD"
        reply = _Reply(send, summary, without_body=without_body, says_id=self._says_id)
        token = REQUEST_ID.set(name)
        try:
            limit_s = read_timeout(headers, self._rules.config.request_timeout_s)
            ends = time.monotonic() + limit_s
            async with asyncio.timeout(limit_s):
                await self._serve(scope, headers, summary, ends, receive, reply)
        except ClientLeft:
            return
        except Exception as error:
            await reply.fail(failure_of(error))
        finally:
            if summary.error is not None:
                metrics.failures.labels(summary.error).inc()
            summary.write()
            REQUEST_ID.reset(token)

    async def _serve(  # noqa: PLR0913 - what ASGI hands over, and what was read of it
        self,
        scope: Scope,
        headers: Mapping[str, str],
        summary: RequestSummary,
        ends: float,
        receive: Receive,
        reply: "_Reply",
    ) -> None:
        path = scope["path"].rstrip("/") or "/"
        if not path.isprintable():  # Starlette would take a line break at its end for nothing
            raise RequestError("Not Found", status=404)
        if is_management(path) and not self._managed:
            raise RequestError("management has a port of its own: server.admin_port", status=404)
        config = self._rules.config
        caller = self._rules.keys.identify(path, headers)
        summary.key, summary.tenant = caller.label, caller.tenant
        body = await read_body(receive, headers, config.max_request_bytes, config.body_timeout_s)
        inner: Scope = {
            **scope,
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "path": path,
            "raw_path": path.encode(),
            "headers": _passed_on(scope["headers"], summary.id, len(body)),
            CALLER: caller,
            SUMMARY: summary,
        }
        if scope["method"] == "POST" and body:
            given = _json(body, headers)
            if isinstance(given, dict):
                inner[REQUEST] = GenerateRequest(
                    given, headers, caller, ends, TokenLimits.of(config, caller.rights)
                )
        await self._app(inner, _replayed(body, receive), reply.send)


def read_timeout(headers: Mapping[str, str], most_s: float) -> float:
    """Return the seconds that a request may take: its own `x-request-timeout`, at most `most_s`.

    Raises RequestError for a value that is no number above 0.
    """
    given = headers.get("x-request-timeout")
    if given is None:
        return most_s
    if not _SECONDS.fullmatch(given) or not float(given):
        raise RequestError(
            f"x-request-timeout: {given[:40]!r} is no number of seconds above 0, such as 2.5"
        )
    return min(float(given), most_s)


def _decoded(headers: Any) -> dict[str, str]:
    """By lower-case name, the first where one comes twice; Latin-1, as HTTP has it."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def _passed_on(headers: Any, name: str, size: int) -> list[tuple[bytes, bytes]]:
    """What other layers see of the headers."""
    own = ("x-request-id", "content-length", "transfer-encoding")
    kept = []
    for key, value in headers:
        known = key.decode("latin-1").lower()
        if known not in own and not NOT_FROM_CLIENTS.fullmatch(known) and _readable(value):
            kept.append((key, value))
    if size and not any(key == b"content-type" for key, _ in kept):
        kept.append((b"content-type", b"application/json"))
    return [*kept, (b"x-request-id", name.encode()), (b"content-length", str(size).encode())]


def _readable(value: bytes) -> bool:
    """Ray decodes headers as UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json(body: bytes, headers: Mapping[str, str]) -> Any:
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RequestError(
            f"content-type {kind[:80]!r} is not understood; send application/json", status=415
        )
    return read_json(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class _Reply:
    """What goes to the client.

    An answer with an error's status is gathered, and put into our words.
    """

    def __init__(
        self, send: Send, summary: RequestSummary, *, without_body: bool, says_id: bool
    ) -> None:
        self._send = send
        self._summary = summary
        self._without_body = without_body
        self._says_id = says_id
        self._wrong: Message | None = None
        self._said = b""
        self._begun = self._ended = False

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if self._ended:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._wrong is not None:
            await self._gather(message)
        else:
            await self._body(message)

    async def fail(self, failure: Failure) -> None:
        """End with a failure: as an answer, or as the last event if one has begun."""
        if self._ended:
            return
        self._summary.error = failure.code
        if self._begun:
            await self._body(
                {"type": "http.response.body", "body": failure.event(), "more_body": False}
            )
            return
        body = json.dumps(failure.body()).encode()
        headers = {
            **failure.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        raw = [(key.lower().encode(), value.encode("latin-1")) for key, value in headers.items()]
        self._wrong = None
        await self._begin({"type": "http.response.start", "status": failure.status, "headers": raw})
        await self._body({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, message: Message) -> None:
        if message["status"] >= 400:
            self._wrong = message
        else:
            await self._begin(message)

    async def _begin(self, message: Message) -> None:
        headers = list(message.get("headers", []))
        MutableHeaders(raw=headers)["x-request-id"] = self._summary.id
        if not self._says_id:
            del MutableHeaders(raw=headers)["x-request-id"]
        self._summary.status = message["status"]
        self._begun = True
        await self._send({**message, "headers": headers})

    async def _gather(self, message: Message) -> None:
        assert self._wrong is not None
        self._said = (self._said + message.get("body", b""))[:_MOST_ERROR_BYTES]
        if message.get("more_body", False):
            return
        try:
            said: Any = json.loads(self._said)
        except ValueError:
            said = self._said.decode(errors="replace")
        kept = ("allow", "retry-after", "www-authenticate", "etag")
        headers = {
            k: v
            for k, v in _decoded(self._wrong.get("headers", [])).items()
            if k.startswith("access-") or k in kept
        }
        if _is_ours(said):
            failure = Failure(self._wrong["status"], **_ours(said), headers=headers)
        else:
            failure = reshaped(self._wrong["status"], said, headers)
        await self.fail(failure)

    async def _body(self, message: Message) -> None:
        self._ended = not message.get("more_body", False)
        await self._send({**message, "body": b""} if self._without_body else message)


def _is_ours(said: Any) -> bool:
    error = said.get("error") if isinstance(said, dict) else None
    return isinstance(error, dict) and isinstance(error.get("code"), str)


def _ours(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said["error"].get(name) for name in ("message", "param", "code")}
