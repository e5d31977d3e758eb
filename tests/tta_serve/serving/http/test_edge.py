"""The outermost layer: what reaches anybody else, and in which form everything leaves."""

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.factories.asgi import Got, asked, call, receiving, spoken
from tta_serve.config.access import AccessConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import KeyRing
from tta_serve.serving.http import openai_errors
from tta_serve.serving.http.edge import Edge, EdgeRules, read_timeout
from tta_serve.serving.reading.request import REQUEST, GenerateRequest
from tta_serve.serving.reading.routes import GENERATES

CHAT = "/v1/chat/completions"
KEY = "let me in"
BODY = {"model": "m", "messages": []}


class Inner:
    """Notes what reaches it, and answers."""

    def __init__(self, response: Response | None = None) -> None:
        self.response = response or PlainTextResponse("fine")
        self.scope: Scope = {}
        self.body: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.body = (await receive())["body"]
        await self.response(scope, receive, send)

    @property
    def headers(self) -> list[tuple[str, str]]:
        return sorted((key.decode(), value.decode()) for key, value in self.scope["headers"])

    @property
    def request(self) -> GenerateRequest | None:
        found: GenerateRequest | None = self.scope.get(REQUEST)
        return found


def edge(app: ASGIApp, key: str | None = KEY, **config: Any) -> Edge:
    return Edge(app, EdgeRules(ServerConfig(**config), KeyRing(AccessConfig(), key)))


def passed(*parts: bytes, path: str = CHAT, method: str = "POST", **headers: str | bytes) -> Inner:
    """What an app behind the edge gets."""
    inner = Inner()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    got = asked(edge(inner), method, path, *parts, headers=named)
    assert got.status == 200, got.body
    return inner


# What goes in.


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "x-session-id",
        "x-data-parallel-rank",
        "x-vllm-priority",
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
        "x-serve-anything",
        "x-forwarded-prefix",
        "content-encoding",
        "endpoint-load-metrics-format",
    ],
)
def test_a_header_by_which_ray_or_vllm_takes_orders_is_nobodys_to_set(name: str) -> None:
    for spelled in (name, name.title()):
        inner = Inner()
        value = "identity" if name == "content-encoding" else "1"
        asked(edge(inner), "POST", CHAT, spoken(BODY), headers={spelled: value})
        assert name not in dict(inner.headers)
        assert spelled not in dict(inner.headers)


def test_all_other_headers_are_passed_on_and_the_length_is_that_of_the_body() -> None:
    inner = passed(
        spoken(BODY),
        x_request_id="mine",
        content_length="3",
        transfer_encoding="chunked",
        authorization="Bearer key",
        content_type="application/json; charset=utf-8",
        traceparent="00-1",
    )
    assert inner.headers == [
        ("authorization", "Bearer key"),
        ("content-length", str(len(spoken(BODY)))),
        ("content-type", "application/json; charset=utf-8"),
        ("traceparent", "00-1"),
        ("x-request-id", "mine"),
    ]


def test_a_header_that_is_not_utf_8_is_left_out() -> None:
    assert "x-name" not in dict(passed(spoken(BODY), x_name=b"\xe9").headers)
    assert dict(passed(spoken(BODY), x_name="é".encode()).headers)["x-name"] == "é"


def test_a_body_without_a_type_is_json() -> None:
    assert dict(passed(spoken(BODY)).headers)["content-type"] == "application/json"
    assert "content-type" not in dict(passed(method="GET", path="/health").headers)


def test_a_body_reaches_the_app_whole_and_unpacked_and_has_been_read() -> None:
    body = spoken(BODY)
    assert passed(body[:5], b"", body[5:]).body == body
    for packed, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        inner = passed(
            pack(body), content_encoding=packed, x_session_id="s", authorization="Bearer k"
        )
        assert inner.body == body
        assert dict(inner.headers)["content-length"] == str(len(body))
        assert inner.request is not None
        assert (inner.request.body, inner.request.session) == (BODY, "s")
        assert inner.request.tenant is not None


def test_of_a_header_that_comes_twice_the_first_is_read() -> None:
    inner = Inner()

    async def run() -> None:
        raw = [
            (b"x-session-id", b"one"),
            (b"x-session-id", b"two"),
            (b"x-request-id", b"a"),
            (b"x-request-id", b"b"),
        ]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": raw}
        await edge(inner)(scope, receiving(spoken(BODY)), Got().send)

    asyncio.run(run())
    assert inner.request is not None
    assert inner.request.session == "one"
    assert [value for key, value in inner.headers if key == "x-request-id"] == ["a"]


def test_what_is_no_object_is_left_to_the_app_to_refuse() -> None:
    assert passed(b"[1]").request is None
    assert passed(b"").request is None
    assert passed(method="GET", path="/health").request is None


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON ; charset=utf-8", "application/problem+json"]
)
def test_json_has_many_names(kind: str) -> None:
    assert passed(spoken(BODY), content_type=kind).request is not None


def test_a_body_of_another_kind_is_415() -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ):
        got = asked(edge(Inner()), "POST", CHAT, b"a=1", headers={"content-type": kind})
        assert got.status == 415
        assert "application/json" in got.error["message"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"a": NaN}', {}, 400),
        (b"[" * 9999, {}, 400),
        (b"\xe9", {}, 400),
        (b"x" * 2000, {}, 413),
        (b"{}", {"content-length": "99999"}, 413),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"{}", {"content-encoding": "gzip"}, 400),
    ],
)
def test_a_body_that_is_none_never_reaches_the_app(
    body: bytes, headers: Mapping[str, str], status: int
) -> None:
    inner = Inner()
    got = asked(
        edge(inner, max_request_bytes=1024 if status == 413 else 4096 * 4),
        "POST",
        CHAT,
        body,
        headers=headers,
    )
    assert got.status == status
    assert got.error["type"] == "invalid_request_error"
    assert inner.scope == {}


def test_a_slow_body_is_408() -> None:
    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    got = asked(edge(Inner(), body_timeout_s=0.05), "POST", CHAT, receive=receive)
    assert got.status == 408


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models//", "/v1/models"])
def test_a_slash_at_the_end_makes_no_difference(path: str) -> None:
    scope = passed(method="GET", path=path).scope
    assert (scope["path"], scope["raw_path"]) == ("/v1/models", b"/v1/models")
    assert passed(method="GET", path="/").scope["path"] == "/"


@pytest.mark.parametrize("path", [f"{CHAT}\n", f"{CHAT}/\n", f"{CHAT}\n/"])
def test_no_other_path_than_its_own_leads_to_a_route_that_generates(path: str) -> None:
    """Starlette takes a path with a line break at its end for the one without, and by it nobody
    would route or admit.
    """
    app = FastAPI()
    reached = []

    @app.post(CHAT)
    async def chat(request: Request) -> None:
        reached.append(request.scope["path"])

    assert asked(edge(app), "POST", path, spoken(BODY)).status in (200, 400, 404)
    assert set(reached) <= set(GENERATES)


def test_what_is_no_http_passes_by() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    asyncio.run(edge(app)({"type": "lifespan"}, receiving(), Got().send))
    assert seen == [{"type": "lifespan"}]


# The request's id.


@pytest.mark.parametrize("name", ["a", "req-1/2?=~", "x" * 128, "!\x7e"])
def test_a_clients_id_goes_with_the_request_and_its_answer(name: str) -> None:
    inner = Inner()
    got = asked(edge(inner), "POST", CHAT, spoken(BODY), headers={"X-Request-Id": name})
    assert got.headers["x-request-id"] == name
    assert dict(inner.headers)["x-request-id"] == name


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 129, "a\tb", "ü", b"\xff", "a\x7f", "a\n"])
def test_an_id_that_is_none_is_replaced_and_so_is_a_missing_one(name: str | bytes) -> None:
    for headers in ({"x-request-id": name}, {}):
        inner = Inner()
        got = asked(edge(inner), "POST", CHAT, spoken(BODY), headers=headers)
        made = got.headers["x-request-id"]
        assert len(made) == 32
        assert int(made, 16) >= 0
        assert dict(inner.headers)["x-request-id"] == made


def test_an_answers_own_id_gives_way() -> None:
    got = asked(
        edge(Inner(Response(headers={"X-Request-Id": "theirs"}))),
        "GET",
        "/x",
        headers={"x-request-id": "a"},
    )
    [start] = got.starts
    assert [value for key, value in start["headers"] if key.lower() == b"x-request-id"] == [b"a"]


def test_a_failure_has_the_id_too() -> None:
    for got in (
        asked(edge(Inner()), "POST", CHAT, b"{", headers={"x-request-id": "a"}),
        asked(
            edge(Inner(Response(status_code=502))),
            "POST",
            CHAT,
            b"{}",
            headers={"x-request-id": "a"},
        ),
    ):
        assert got.status >= 400
        assert got.headers["x-request-id"] == "a"


# HEAD.


def test_head_is_get_without_a_body() -> None:
    inner = Inner(JSONResponse({"a": 1}))
    got = asked(edge(inner), "HEAD", "/v1/models")
    assert inner.scope["method"] == "GET"
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "7")
    assert got.ended


def test_head_of_what_fails_has_no_body_either() -> None:
    got = asked(edge(Inner(PlainTextResponse("no", 404))), "HEAD", "/x")
    assert (got.status, got.body) == (404, b"")
    assert int(got.headers["content-length"]) > 0
    assert got.ended


# Management.

MANAGED = (
    "/admin/experts",
    "/admin/kill",
    "/admin/",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter/",
)
AUTHORIZATIONS = (
    None,
    "",
    "Bearer",
    "Bearer x",
    f"Bearer {KEY} ",
    f"bearer {KEY}",
    "Bearer ü",
    f"Basic {KEY}",
)


async def _never() -> Message:
    raise AssertionError("nothing of the body is looked at before the key")


@pytest.mark.parametrize("path", MANAGED[:2] + MANAGED[3:])
def test_management_asks_for_its_key_before_anything_else(path: str) -> None:
    for given in AUTHORIZATIONS:
        headers = {} if given is None else {"authorization": given}
        junk = {**headers, "content-encoding": "br", "content-type": "x"}
        got = asked(edge(Inner()), "POST", path, headers=junk, receive=_never)
        assert (got.status, got.error["code"]) == (401, "invalid_api_key")
        assert got.headers["www-authenticate"] == "Bearer"
    for given in (KEY, f"Bearer {KEY}"):
        got = asked(edge(Inner()), "POST", path, b"{}", headers={"authorization": given})
        assert got.status == 200


@pytest.mark.parametrize("path", MANAGED[:2] + MANAGED[3:])
@pytest.mark.parametrize("key", [None, ""])
def test_management_is_off_without_a_key(path: str, key: str | None) -> None:
    for given in ("", "Bearer ", "Bearer x"):
        got = asked(
            edge(Inner(), key), "POST", path, headers={"authorization": given}, receive=_never
        )
        assert (got.status, got.error["type"]) == (403, "permission_error")
        assert "TTA_ADMIN_KEY" in got.error["message"]


def test_all_else_is_for_everybody() -> None:
    for path in (CHAT, "/v1/feedback", "/metrics", "/admin", "/administration"):
        assert asked(edge(Inner(), None), "POST", path, b"{}").status == 200


def test_a_key_may_be_of_any_characters() -> None:
    got = asked(
        edge(Inner(), "schlüssel"), "GET", "/admin/kill", headers={"authorization": "Bearer nein"}
    )
    assert got.status == 401


# What comes out.


def test_an_answer_stays_as_it_is() -> None:
    response = Response(
        b"\x00\x01", 201, {"x-tta-mix": "abc", "etag": '"3"'}, "application/octet-stream"
    )
    got = asked(edge(Inner(response)), "POST", CHAT, spoken(BODY))
    assert (got.status, got.body) == (201, b"\x00\x01")
    assert (got.headers["x-tta-mix"], got.headers["etag"]) == ("abc", '"3"')
    assert got.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("response", "message", "param", "code"),
    [
        (PlainTextResponse("Path '/x' not found.", 404), "Path '/x' not found.", None, "not_found"),
        (PlainTextResponse("", 404), "Not Found", None, "not_found"),
        (JSONResponse({"detail": "Not Found"}, 404), "Not Found", None, "not_found"),
        (
            JSONResponse({"detail": [{"loc": []}]}, 422),
            "Unprocessable Entity",
            None,
            "unprocessable_entity",
        ),
        (
            JSONResponse({"detail": "not ready: KeyError"}, 503),
            "not ready: KeyError",
            None,
            "unavailable",
        ),
        (
            PlainTextResponse("Traceback: KeyError", 500),
            "internal server error",
            None,
            "internal_error",
        ),
        (
            JSONResponse({"error": {"message": "at 0x7f", "code": 500}}, 500),
            "internal server error",
            None,
            "internal_error",
        ),
        (PlainTextResponse("no such thing yet", 501), "no such thing yet", None, "not_implemented"),
        (
            JSONResponse(
                {
                    "error": {
                        "message": "too long",
                        "type": "BadRequestError",
                        "param": "n",
                        "code": 400,
                    }
                },
                400,
            ),
            "too long",
            "n",
            "invalid_request",
        ),
        (JSONResponse([1], 400), "Bad Request", None, "invalid_request"),
        (JSONResponse({"error": "x"}, 400), "Bad Request", None, "invalid_request"),
        (Response(b"\xff\x00", 400), "\ufffd\x00", None, "invalid_request"),
    ],
)
def test_what_others_say_of_a_failure_is_put_into_openais_shape(
    response: Response, message: str, param: str | None, code: str
) -> None:
    got = asked(edge(Inner(response)), "POST", CHAT, spoken(BODY))
    assert got.status == response.status_code
    assert (got.error["message"], got.error["param"], got.error["code"]) == (message, param, code)
    assert got.headers["content-type"] == "application/json"
    assert got.headers["content-length"] == str(len(got.body))
    assert got.ended


def test_a_failure_in_our_words_is_not_changed() -> None:
    failure = openai_errors.failure_of(
        RequestError("no", status=429, param="n", headers={"retry-after": "1"})
    )
    got = asked(edge(Inner(failure.response())), "POST", CHAT, spoken(BODY))
    assert got.json == failure.body()
    assert got.headers["retry-after"] == "1"


def test_a_failure_in_parts_is_gathered_and_an_endless_one_cut() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        for part in [b'{"detail": ', b'"so', b'"', b"}"]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        for _ in range(int(scope["path"][1:])):
            await send({"type": "http.response.body", "body": b" " * 4096, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    assert asked(edge(app), "POST", "/0", b"{}").error["message"] == "so"
    assert len(asked(edge(app), "POST", "/999", b"{}").body) < 2 << 20


RAISED: Mapping[str, Exception] = {
    "ours": RequestError("no", status=409, param="p"),
    "value": ValueError("no such thing"),
    "key": KeyError("secret"),
    "group": ExceptionGroup("secret", [KeyError("secret")]),
}


def fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/one")
    async def one() -> dict[str, int]:
        return {}

    @app.post("/raises/{kind}")
    async def raises(kind: str) -> None:
        raise RAISED[kind]

    openai_errors.install(app)
    return app


def test_405_keeps_allow() -> None:
    got = asked(edge(fastapi()), "POST", "/one", b"{}")
    assert (got.status, got.headers["allow"]) == (405, "GET")
    assert got.error["code"] == "method_not_allowed"
    assert asked(edge(fastapi()), "GET", "/two").error["message"] == "Not Found"


def test_headers_of_a_failure_that_clients_need_are_kept_and_no_others() -> None:
    headers = {
        "Retry-After": "3",
        "WWW-Authenticate": "Bearer",
        "ETag": '"1"',
        "Access-Control-Allow-Origin": "*",
        "X-Internal": "1",
        "content-language": "de",
    }
    got = asked(edge(Inner(PlainTextResponse("no", 429, headers))), "POST", CHAT, spoken(BODY))
    kept = {"retry-after", "www-authenticate", "etag", "access-control-allow-origin"}
    assert got.headers.keys() == {*kept, "content-type", "content-length", "x-request-id"}


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("ours", 409, "no"),
        ("value", 400, "no such thing"),
        ("key", 500, "internal server error"),
        ("group", 500, "internal server error"),
    ],
)
def test_what_is_raised_is_a_failure_in_the_same_shape(
    kind: str, status: int, message: str
) -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        raise RAISED[kind]

    for app in (fastapi(), bare):
        got = asked(edge(app), "POST", f"/raises/{kind}", b"{}")
        assert (got.status, got.error["message"]) == (status, message)


def test_a_failure_of_ours_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    with caplog.at_level(logging.ERROR, "tta_serve"):
        assert asked(edge(app), "POST", CHAT, b"{}").status == 500
    assert "secret" in caplog.text


# Time.


def stalling(*before: Message) -> ASGIApp:
    """Sends some messages, then nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in before:
            await send(message)
        await asyncio.sleep(60)

    return app


def begins(status: int = 200) -> Message:
    kind = (b"content-type", b"text/event-stream")
    return {"type": "http.response.start", "status": status, "headers": [kind]}


def says(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def test_a_request_that_takes_too_long_is_408_before_its_first_byte() -> None:
    for app in (stalling(), stalling(begins(500)), stalling(begins(500), says(b"Internal"))):
        got = asked(edge(app, request_timeout_s=0.05), "POST", CHAT, spoken(BODY))
        assert (got.status, got.error["code"]) == (408, "timeout")
        assert got.ended


def test_a_request_that_takes_too_long_ends_with_one_event_after_its_first_byte() -> None:
    app = stalling(begins(), says(b"data: {}\n\n"))
    got = asked(edge(app, request_timeout_s=0.05), "POST", CHAT, spoken(BODY))
    assert got.status == 200
    assert got.parts[0] == b"data: {}\n\n"
    assert len(got.parts) == 2
    assert got.parts[1].endswith(b"}\n\n")
    assert json.loads(got.parts[1].partition(b"data: ")[2])["error"]["code"] == "timeout"
    assert got.ended


def test_in_a_stream_of_messages_that_event_has_a_name_that_anthropics_clients_know() -> None:
    app = stalling(begins(), says(b'event: ping\ndata: {"type": "ping"}\n\n'))
    got = asked(edge(app, request_timeout_s=0.05), "POST", "/v1/messages", spoken(BODY))
    assert got.parts[1].startswith(b"event: error\ndata: ")


def test_the_time_of_a_body_counts_and_what_runs_is_cancelled() -> None:
    cancelled = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert asked(edge(app, request_timeout_s=0.05), "POST", CHAT, spoken(BODY)).status == 408
    assert cancelled == [True]


@pytest.mark.parametrize(
    ("given", "limit_s", "takes_s"), [("0.05", 60, 0.05), ("600", 0.05, 0.05), ("2.5", 7, 2.5)]
)
def test_a_request_may_say_how_long_it_may_take_but_no_longer_than_the_server_allows(
    given: str, limit_s: float, takes_s: float
) -> None:
    assert read_timeout({"x-request-timeout": given}, limit_s) == takes_s
    if takes_s < 1:
        app = edge(stalling(), request_timeout_s=limit_s)
        got = asked(app, "POST", CHAT, spoken(BODY), headers={"x-request-timeout": given})
        assert got.status == 408


@pytest.mark.parametrize("given", ["0", "-1", "soon", "inf", "nan", "1e3", "", "1" * 40, "0.0"])
def test_a_time_that_is_none_is_refused(given: str) -> None:
    got = asked(edge(stalling()), "POST", CHAT, spoken(BODY), headers={"x-request-timeout": given})
    assert got.status == 400
    assert "x-request-timeout" in got.error["message"]


# Clients that leave.


def test_a_client_that_leaves_in_its_body_gets_nothing_and_reaches_nobody() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    inner = Inner()
    assert asked(edge(inner), "POST", CHAT, receive=receive).raw == []
    assert inner.scope == {}


def test_the_app_hears_of_a_client_that_leaves_while_it_works() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    asked(edge(app), "POST", CHAT, receive=receiving(b"{}", then=0.02))
    assert [one["type"] for one in heard] == ["http.request", "http.disconnect"]
    assert heard[0] == {"type": "http.request", "body": b"{}", "more_body": False}


def test_a_request_that_is_cancelled_from_outside_says_nothing_more() -> None:
    async def run() -> None:
        got = Got()
        task = asyncio.create_task(
            call(edge(stalling(begins(), says(b"x"))), "POST", CHAT, b"{}", send=got.send)
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert got.body == b"x"

    asyncio.run(run())


def test_where_ray_says_the_requests_id_it_is_said_once() -> None:
    app = Edge(
        Inner(PlainTextResponse("fine", headers={"x-request-id": "vllms"})),
        EdgeRules(ServerConfig(), KeyRing(AccessConfig(), None)),
        says_id=False,
    )
    got = asked(app, "GET", "/healthz", headers={"x-request-id": "mine"})
    assert (got.status, "x-request-id" in got.headers) == (200, False)


def test_after_its_end_an_answer_takes_nothing_more() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("fine")(scope, receive, send)
        await send(says(b"more"))
        raise KeyError

    got = asked(edge(app), "POST", CHAT, b"{}")
    assert (got.status, got.body) == (200, b"fine")


# Web pages.


def asked_by(origins: list[str], method: str, origin: str, **more: str) -> Got:
    from tta_serve.serving.replica.replica import build_edge

    app = build_edge(
        Inner(PlainTextResponse("no", 429)),
        EdgeRules(ServerConfig(cors_origins=origins), KeyRing(AccessConfig(), None)),
    )
    headers = {"origin": origin, **{name.replace("_", "-"): value for name, value in more.items()}}
    return asked(app, method, CHAT, b"{}", headers=headers)


def test_pages_of_the_named_origins_may_ask_and_read_what_is_said_also_of_failures() -> None:
    page = "https://a.example"
    other = "https://b.example"
    wanted = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization",
    }
    flight = asked_by([page], "OPTIONS", page, **wanted)
    assert (flight.status, flight.headers["access-control-allow-origin"]) == (200, page)
    failed = asked_by([page], "POST", page)
    assert (failed.status, failed.headers["access-control-allow-origin"]) == (429, page)
    assert "x-tta-mix" in failed.headers["access-control-expose-headers"]
    for origins in ([page], []):
        got = asked_by(origins, "POST", other)
        assert "access-control-allow-origin" not in got.headers
