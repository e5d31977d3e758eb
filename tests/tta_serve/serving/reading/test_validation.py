"""What is said of a body that vLLM's models refuse: of the field, and of the form, that the client
meant.
"""

from typing import Any, Literal

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tests.factories.asgi import asked, spoken
from tta_serve.config.access import AccessConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.serving.access.key_ring import KeyRing
from tta_serve.serving.http.edge import Edge, EdgeRules
from tta_serve.serving.reading.validation import explain_validation

USER = {"role": "user", "content": "x"}
CHAT = {"model": "m", "messages": [USER]}
TEXT = {"model": "m", "prompt": "x"}
SAYS = {"model": "m", "max_tokens": 5}


def messages(*given: Any, **more: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [*given], **more}


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/chat/completions", {"model": "m"}, "messages", "Field required"),
        ("/v1/chat/completions", CHAT | {"model": 5}, "model", "valid string"),
        ("/v1/chat/completions", CHAT | {"temperature": "hot"}, "temperature", "valid number"),
        ("/v1/chat/completions", CHAT | {"temperature": {"a": 1}}, "temperature", "valid number"),
        ("/v1/chat/completions", CHAT | {"n": 1.5}, "n", "fractional part"),
        (
            "/v1/chat/completions",
            CHAT | {"seed": 2**70},
            "seed",
            "less than or equal to 9223372036854775807",
        ),
        ("/v1/chat/completions", CHAT | {"stream": "maybe"}, "stream", "valid boolean"),
        ("/v1/chat/completions", CHAT | {"logit_bias": {"5": "x"}}, "logit_bias.5", "valid number"),
        ("/v1/chat/completions", messages(USER, 5), "messages.1", "valid dictionary"),
        ("/v1/chat/completions", messages({"content": "x"}), "messages.0.role", "Field required"),
        (
            "/v1/chat/completions",
            messages({**USER, "content": 5}),
            "messages.0.content",
            "valid string or",
        ),
        ("/v1/chat/completions", CHAT | {"messages": "hi"}, "messages", "valid list"),
        ("/v1/chat/completions", CHAT | {"stop": 5}, "stop", "valid string or a valid list"),
        ("/v1/chat/completions", CHAT | {"stop": ["a", 5]}, "stop.1", "valid string"),
        (
            "/v1/chat/completions",
            CHAT | {"response_format": "json"},
            "response_format",
            "valid dictionary",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json"}},
            "response_format.type",
            "'text', 'json_object' or 'json_schema'",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name",
            "Field required",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"tools": [{"type": "function"}]},
            "tools.0.function",
            "Field required",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"tool_choice": "some"},
            "tool_choice",
            "`tools` must be set",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"stream_options": {"include_usage": True}},
            "stream_options",
            "when `stream=True`",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"vllm_xargs": {"a": {}}},
            "vllm_xargs.a",
            "string or a valid integer",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"structured_outputs": {"regex": 5}},
            "structured_outputs.regex",
            "string",
        ),
        ("/v1/chat/completions", [1], None, "valid dictionary"),
        ("/v1/chat/completions/batch", CHAT, "messages.0", "valid list"),
        ("/v1/completions", TEXT | {"prompt": {"a": 1}}, "prompt", "valid list or a valid string"),
        ("/v1/completions", TEXT | {"prompt": [1, "a"]}, "prompt.1", "valid integer"),
        ("/v1/completions", TEXT | {"prompt": [[1], "a"]}, "prompt.1", "valid list"),
        ("/v1/completions", TEXT | {"max_tokens": "many"}, "max_tokens", "valid integer"),
        ("/v1/completions", {"model": "m"}, "prompt", "must be provided"),
        ("/v1/responses", {"model": "m"}, "input", "Field required"),
        ("/v1/responses", {"model": "m", "input": 5}, "input", "valid string or a valid list"),
        (
            "/v1/responses",
            {"input": [{**USER, "content": 5}]},
            "input.0.content",
            "valid string or a valid list",
        ),
        (
            "/v1/responses",
            {"input": [{**USER, "content": [{"type": "input_text"}]}]},
            "input.0.content.0.text",
            "Field required",
        ),
        ("/v1/responses", {"input": [{"type": "nothing"}]}, "input.0.type", "Input should be"),
        (
            "/v1/responses",
            {"input": "x", "tools": [{"type": "function"}]},
            "tools.0.name",
            "Field required",
        ),
        ("/v1/messages", {"model": "m", "messages": [USER]}, "max_tokens", "Field required"),
        (
            "/v1/messages",
            SAYS | {"messages": [{**USER, "role": "nobody"}]},
            "messages.0.role",
            "'user', 'assistant'",
        ),
        (
            "/v1/messages",
            SAYS | {"messages": [{**USER, "content": 5}]},
            "messages.0.content",
            "string or a valid list",
        ),
        (
            "/v1/messages",
            SAYS | {"messages": [{**USER, "content": [{"type": "txt"}]}]},
            "messages.0.content.0.type",
            "Input should be 'text', 'image'",
        ),
        (
            "/v1/messages",
            SAYS | {"max_tokens": 0, "messages": [USER]},
            "max_tokens",
            "must be positive",
        ),
        ("/tokenize", {"prompt": 5}, "prompt", "valid string"),
        ("/detokenize", {"tokens": "x"}, "tokens", "valid list"),
    ],
)
def test_vllms_bodies(app: FastAPI, path: str, body: Any, param: str | None, says: str) -> None:
    got = asked(
        Edge(app, EdgeRules(ServerConfig(), KeyRing(AccessConfig(), None))),
        "POST",
        path,
        spoken(body),
    )
    assert got.status == 400
    assert (got.error["param"], got.error["code"]) == (param, "invalid_request")
    assert says in got.error["message"]
    assert len(got.error["message"]) < 400
    assert not {"pydantic", "http", "function-", "tagged-union"} & {*got.error["message"].split()}


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["text"]
    text: str


class Picture(BaseModel):
    kind: Literal["picture"]
    size: tuple[int, int]


class Body(BaseModel):
    parts: str | list[Text | Picture] | None = None
    number: int = 0

    @field_validator("number")
    @classmethod
    def _small(cls, value: int) -> int:
        if value > 9:
            raise ValueError("it should be small")
        return value


def said(body: Any, *, known: bool = True) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as error:
        Body.model_validate(body)
    return explain_validation(error.value.errors(), body if known else None)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"parts": 5}, "parts: Input should be a valid string or a valid list", "parts"),
        ({"parts": [5]}, "valid dictionary", "parts.0"),
        ({"parts": [{"kind": "text"}]}, "parts.0.text: Field required", "parts.0.text"),
        (
            {"parts": [{"kind": "text", "text": 5}]},
            "parts.0.text: Input should be a valid string",
            "parts.0.text",
        ),
        ({"parts": [{"kind": "text", "text": "x", "size": 5}]}, "Extra inputs", "parts.0.size"),
        ({"parts": [{"kind": "picture", "size": [1, "x"]}]}, "valid integer", "parts.0.size.1"),
        (
            {"parts": [{"kind": "picture"}, {"kind": "text"}]},
            "parts.0.size: Field required",
            "parts.0.size",
        ),
        (
            {"parts": [{"kind": "sound"}]},
            "parts.0.kind: Input should be 'text' or 'picture'",
            "parts.0.kind",
        ),
        ({"number": 10}, "number: it should be small", "number"),
        ([], "body: Input should be a valid dictionary", None),
    ],
)
def test_the_form_that_was_meant_is_the_one_whose_tags_fit_or_that_the_value_has_the_kind_of(
    body: Any, message: str, param: str | None
) -> None:
    found, place = said(body)
    assert message in found
    assert place == param


def test_where_the_body_is_not_known_the_place_still_begins_with_the_field() -> None:
    for body in ({"number": 10}, {"number": "x"}, {"parts": [5]}):
        message, param = said(body, known=False)
        assert param is not None
        assert param.partition(".")[0] in body
        assert message.startswith(param.partition(".")[0])


def test_of_several_wrong_fields_the_first_is_told() -> None:
    assert said({"parts": 5, "number": "x"})[1] == "parts"


def test_a_long_complaint_is_cut() -> None:
    errors = [{"type": "value_error", "loc": ("body", "a"), "msg": f"Value error, {'x' * 999}"}]
    message, param = explain_validation(errors, {"a": 1})
    assert (param, len(message)) == ("a", 303)


@pytest.mark.parametrize("place", ["query", "path", "header"])
def test_what_is_wrong_may_stand_elsewhere_than_in_the_body(place: str) -> None:
    errors = [
        {"type": "int_parsing", "loc": (place, "n"), "msg": "Input should be a valid integer"}
    ]
    assert explain_validation(errors) == ("n: Input should be a valid integer", "n")


def test_what_is_no_json_says_so() -> None:
    errors = [
        {
            "type": "json_invalid",
            "loc": ("body", 1),
            "msg": "JSON decode error",
            "ctx": {"error": "Expecting value"},
        }
    ]
    assert explain_validation(errors) == ("the body is not JSON: Expecting value", None)
