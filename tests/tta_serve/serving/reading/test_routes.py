"""Which of vLLM's routes are served, and what a body may hold."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from tests.factories.asgi import asked
from tta_serve.config.access import AccessConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import KeyRing
from tta_serve.serving.http.edge import Edge, EdgeRules
from tta_serve.serving.reading import routes
from tta_serve.serving.reading.routes import GENERATES, LEFT_OUT, TOKENIZES, Routes, keep_served

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
VOCABULARY = 100


@pytest.fixture(scope="module")
def known(app: FastAPI) -> Routes:
    return Routes.of(app)


def paths(app: FastAPI) -> set[str]:
    return {getattr(route, "path", "") for route in app.router.routes}


# Routes.


def test_every_route_of_vllm_is_in_exactly_one_list_and_every_list_names_routes_of_vllm(
    build: Callable[[], FastAPI],
) -> None:
    lists: list[Iterable[str]] = [GENERATES, TOKENIZES, routes._OTHERS, LEFT_OUT]
    named = [path for one in lists for path in one]
    assert len(named) == len(set(named))
    assert set(named) == paths(build())


def test_what_is_left_out_is_gone_and_all_else_is_there(build: Callable[[], FastAPI]) -> None:
    app = build()
    before = paths(app)
    keep_served(app)
    assert paths(app) == before - LEFT_OUT.keys()
    assert {*GENERATES, *TOKENIZES} <= paths(app)


def test_a_route_that_nobody_has_looked_at_stops_the_start(build: Callable[[], FastAPI]) -> None:
    app = build()
    app.router.routes.append(Route("/v1/new", lambda request: None, methods=["POST"]))
    with pytest.raises(AssertionError, match="/v1/new"):
        keep_served(app)


def test_every_route_that_generates_or_tokenizes_has_fields(known: Routes) -> None:
    assert known.fields.keys() == {*GENERATES, *TOKENIZES}
    for path, fields in known.fields.items():
        assert "model" in fields, path
    for path, name in (
        (CHAT, "messages"),
        (TEXT, "prompt"),
        (RESPONSES, "input"),
        (MESSAGES, "metadata"),
    ):
        assert name in known.fields[path]
    assert {"prompt", "messages"} <= known.fields["/tokenize"], "of both forms of its body"


def test_no_field_of_vllm_is_taken_for_merge_or_is_one_of_ours(known: Routes) -> None:
    for fields in known.fields.values():
        assert "merge" not in fields
        assert not [name for name in fields if get_close_matches(name, ["merge"], cutoff=0.8)]


def test_every_field_of_token_ids_is_looked_at(build: Callable[[], FastAPI]) -> None:
    """Of all lists of integers that a body may have: they are token ids, or known to be something
    else.
    """
    found: set[str] = set()
    for route in build().router.routes:
        if getattr(route, "path", "") not in {*GENERATES, *TOKENIZES}:
            continue
        for parameter in route.dependant.body_params:  # type: ignore[attr-defined]
            kind = parameter.field_info.annotation
            for model in getattr(kind, "__args__", (kind,)):
                for name, field in model.model_fields.items():
                    if "list[int]" in str(field.annotation):
                        found.add(name)
    xargs = {"vllm_xargs"}  # read by nobody
    assert found - xargs <= {*routes._TOKEN_IDS}


def test_the_schema_shows_merge_wherever_it_may_be_sent(app: FastAPI) -> None:
    schema = app.openapi()
    assert schema == app.openapi(), "asked again it is the same"
    for path in GENERATES:
        content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"][
            "schema"
        ]
        body = schema["components"]["schemas"][content["$ref"].rpartition("/")[2]]
        assert body["properties"]["merge"] == {"$ref": "#/components/schemas/MergeRequest"}
    assert "experts" in schema["components"]["schemas"]["MergeRequest"]["properties"]
    assert not LEFT_OUT.keys() & schema["paths"].keys() - {"/metrics", "/v1/models"}


def test_of_vllms_middleware_its_metrics_are_left(app: FastAPI) -> None:
    names = [getattr(one.cls, "__name__", "") for one in app.user_middleware]
    assert names == ["PrometheusInstrumentatorMiddleware"]


@pytest.mark.parametrize("path", sorted(LEFT_OUT.keys() - {"/metrics", "/v1/models"}))
def test_a_route_that_is_left_out_is_404(app: FastAPI, path: str) -> None:
    for method in ("GET", "POST"):
        got = asked(
            Edge(app, EdgeRules(ServerConfig(), KeyRing(AccessConfig(), None))),
            method,
            path,
            b"{}" if method == "POST" else b"",
        )
        assert (got.status, got.error["code"]) == (404, "not_found")


# Bodies.


def refused(known: Routes, path: str, body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as error:
        known.check(path, body, VOCABULARY)
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(
    "name", ["prompt", "tokens", "allowed_token_ids", "stop_token_ids", "logprob_token_ids"]
)
@pytest.mark.parametrize("token", [VOCABULARY, -1, 2**31, 2**70])
def test_a_token_that_the_base_has_not_is_refused_in_every_field(
    known: Routes, name: str, token: int
) -> None:
    for path in (*GENERATES, *TOKENIZES):
        for value in ([0, token], [[0], [99, token]]):
            said = refused(known, path, {name: value})
            assert said.param == name
            assert f"token id {token} is not in the vocabulary, whose ids are 0 to 99" in str(said)
        known.check(path, {name: [0, 99]}, VOCABULARY)
        known.check(path, {name: [[0, 99], [5]]}, VOCABULARY)


@pytest.mark.parametrize("key", ["100", "-1", "007000", str(2**70)])
def test_a_bias_of_a_token_that_the_base_has_not_is_refused(known: Routes, key: str) -> None:
    assert refused(known, CHAT, {"logit_bias": {"5": 1, key: 1}}).param == "logit_bias"


def test_a_bias_of_known_tokens_passes(known: Routes) -> None:
    known.check(CHAT, {"logit_bias": {"0": 1, "99": -100}}, VOCABULARY)


@pytest.mark.parametrize("key", ["", "x", "-", "--5", "1.5", "½", "5 5"])
def test_a_bias_of_what_is_no_token_is_left_to_vllm(known: Routes, key: str) -> None:
    known.check(CHAT, {"logit_bias": {key: 1}}, VOCABULARY)


@pytest.mark.parametrize(
    "value", [None, 5, "x", {}, [None], ["x"], [1.5], [{"a": [999]}], [], [[]], [["x", 5]]]
)
def test_what_is_no_list_of_tokens_is_left_to_vllm(known: Routes, value: Any) -> None:
    for name in (*routes._TOKEN_IDS, "logit_bias"):
        known.check(TEXT, {name: value}, VOCABULARY)


@pytest.mark.parametrize(
    "name", ["merg", "merges", "merged", "mrege", "Merge", "merge_", "merge.experts"[:6], "merrge"]
)
def test_what_looks_like_merge_is_refused_and_not_passed_over(known: Routes, name: str) -> None:
    for path in (*GENERATES, *TOKENIZES):
        said = refused(known, path, {name: {"experts": {"sql": 1}}})
        assert said.param == name
        assert "did you mean merge?" in str(said)


def test_merge_and_other_words_are_not(known: Routes) -> None:
    for name in ("merge", "emerge_from", "message", "large", "m", "x" * 10_000, "", "mix"):
        known.check(CHAT, {name: 1}, VOCABULARY)


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "extra_body"])
def test_what_moves_caches_or_was_sent_in_the_wrong_place_is_refused(
    known: Routes, name: str
) -> None:
    for path in GENERATES:
        assert refused(known, path, {name: {"x": 1}}).param == name
        known.check(path, {name: None}, VOCABULARY)


def test_an_answer_in_the_background_is_refused(known: Routes) -> None:
    assert refused(known, RESPONSES, {"background": True}).param == "background"
    known.check(RESPONSES, {"background": False}, VOCABULARY)


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
def test_what_moves_caches_is_refused_in_vllms_own_arguments_too(known: Routes, name: str) -> None:
    """vLLM reads both out of `vllm_xargs`, where its connectors take a text for a dict, in the
    engine's process.
    """
    for path in GENERATES:
        assert refused(known, path, {"vllm_xargs": {name: "x"}}).param == f"vllm_xargs.{name}"
        known.check(path, {"vllm_xargs": {"mine": "x"}}, VOCABULARY)


def test_the_messages_of_a_chat_are_looked_at(known: Routes) -> None:
    wrong = [{"role": "user", "content": [5]}]
    assert refused(known, CHAT, {"messages": wrong}).param == "messages.0.content.0"
    assert refused(known, f"{CHAT}/batch", {"messages": [wrong]}).param == "messages.0.0.content.0"
    known.check(MESSAGES, {"messages": wrong}, VOCABULARY)


@pytest.mark.parametrize("name", ["response_format", "structured_outputs"])
def test_beam_search_keeps_to_no_format(known: Routes, name: str) -> None:
    body = {name: {"type": "json_object"}, "use_beam_search": True}
    assert refused(known, CHAT, body).param == name
    for other in (False, None):
        known.check(CHAT, body | {"use_beam_search": other}, VOCABULARY)


# What is not heeded.


def warned(known: Routes, path: str, body: dict[str, Any]) -> list[str]:
    return sorted(known.warnings(path, body))


@pytest.mark.parametrize("path", GENERATES)
def test_a_field_that_nobody_knows_is_named(known: Routes, path: str) -> None:
    body = {
        "model": "m",
        "merge": {},
        "user": "u",
        "metadata": {},
        "session_id": "s",
        "nonsense": 1,
    }
    assert warned(known, path, body) == ["nonsense: unknown, ignored"]
    assert warned(known, path, {"x" * 999: 1}) == [f"{'x' * 64}: unknown, ignored"]
    assert warned(known, path, dict.fromkeys(known.fields[path] - {"use_beam_search"}, 1)) == []


def test_what_a_field_is_depends_on_the_route(known: Routes) -> None:
    assert warned(known, CHAT, {"messages": [], "max_tokens": 5}) == []
    assert warned(known, TEXT, {"messages": [], "max_tokens": 5}) == ["messages: unknown, ignored"]
    assert warned(known, RESPONSES, {"input": "", "max_tokens": 5}) == [
        "max_tokens: unknown, ignored"
    ]
    assert warned(known, MESSAGES, {"system": "", "seed": 5}) == ["seed: unknown, ignored"]
    assert warned(known, f"{CHAT}/batch", {"stream": True}) == ["stream: unknown, ignored"]


def test_of_a_route_that_is_not_ours_nothing_is_said(known: Routes) -> None:
    assert warned(known, "/v1/other", {"nonsense": 1}) == []


def test_what_beam_search_does_not_heed_is_named(known: Routes) -> None:
    body: dict[str, Any] = {
        "prompt": "x",
        "use_beam_search": True,
        "n": 4,
        "max_tokens": 5,
        "temperature": 0,
    }
    assert warned(known, TEXT, body) == []
    found = warned(known, TEXT, body | {"top_p": 0.5, "seed": 7, "stop": ["x"], "top_k": None})
    assert found == [f"{name}: ignored by beam search" for name in ("seed", "stop", "top_p")]
    assert warned(known, TEXT, body | {"use_beam_search": False, "seed": 7}) == []


def test_what_beam_search_does_not_heed_is_what_it_does_not_hand_on() -> None:
    """Of vLLM's fields: those of `BeamSearchParams` are heeded, and those that are no parameters of
    sampling.
    """
    from vllm.sampling_params import BeamSearchParams, SamplingParams

    heeded = {*BeamSearchParams.__struct_fields__, "n", "logprobs"}
    sampling = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert set(routes._NOT_HEEDED) <= sampling - heeded


def test_only_routes_that_have_beam_search_speak_of_it(known: Routes) -> None:
    for path in (RESPONSES, MESSAGES):
        assert warned(known, path, {"use_beam_search": True, "top_p": 0.5}) == [
            "use_beam_search: unknown, ignored"
        ]
