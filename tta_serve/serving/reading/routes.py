"""Which of vLLM's routes are served, and what their bodies may hold."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from vllm.entrypoints.chat_utils import ChatCompletionContentPartParam

from tta_serve.exceptions import RequestError

GENERATES = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
"""Each takes `merge`, and its answers carry it."""

TOKENIZES = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
_OTHERS = (
    "/health",
    "/ping",
    "/version",
    "/load",
    "/tokenizer_info",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
)
LEFT_OUT = {
    "/metrics": "ours has every replica's",
    "/v1/models": "ours lists experts and entries",
    "/invocations": "chooses between two routes by trial",
    "/generative_scoring": "generates without a mix",
    "/inference/v1/generate": "takes the engine's own parameters",
    "/scale_elastic_ep": "changes the engine without a key",
    "/is_scaling_elastic_ep": "of no use without the one before",
    "/v1/chat/completions/render": "of servers that only tokenize",
    "/v1/messages/render": "of servers that only tokenize",
    "/v1/completions/render": "of servers that only tokenize",
    "/v1/chat/completions/derender": "of servers that only tokenize",
    "/v1/completions/derender": "of servers that only tokenize",
}
"""vLLM's routes that are not served, and why. One that is in no list stops the start."""

_CHATS = "/v1/chat/completions"
_OURS = frozenset({"merge", "session_id", "user", "metadata"})
_REFUSED = {
    "kv_transfer_params": "this server moves no caches between engines",
    "ec_transfer_params": "this server moves no caches between engines",
    "background": "an answer ends with its request",
    "extra_body": (
        "it is an argument of the openai client, which sends what is in it beside the other fields"
    ),
}
_MOVES_CACHES = {"kv_transfer_params", "ec_transfer_params"}
_TOKEN_IDS = ("prompt", "tokens", "allowed_token_ids", "stop_token_ids", "logprob_token_ids")
_NOT_SEARCHED = ("response_format", "structured_outputs")
_NOT_HEEDED = (
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)


def keep_served(app: FastAPI) -> None:
    """Take away the routes of vLLM's app that are not served."""
    served = {*GENERATES, *TOKENIZES, *_OTHERS}
    paths = {getattr(route, "path", "") for route in app.router.routes}
    unknown = paths - served - LEFT_OUT.keys()
    assert not unknown, f"vLLM has routes that nobody has looked at: {', '.join(sorted(unknown))}"
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", "") in served
    ]


@dataclass(frozen=True)
class Routes:
    """The fields that the bodies of served routes may hold."""

    fields: Mapping[str, frozenset[str]]
    """Names of fields by path, for the routes that generate or tokenize."""

    @classmethod
    def of(cls, app: FastAPI) -> "Routes":
        """Of the bodies that an app's routes take."""
        routes = [
            r
            for r in app.router.routes
            if isinstance(r, APIRoute) and r.path in {*GENERATES, *TOKENIZES}
        ]
        return cls({route.path: frozenset(_fields(route)) for route in routes})

    def check(self, path: str, body: Mapping[str, Any], vocabulary: int) -> None:
        """Raise RequestError for what vLLM lets pass to the engine's harm, or to nobody's use.

        Args:
            vocabulary: Tokens of the base.
        """
        for name, why in _REFUSED.items():
            if body.get(name) not in (None, False):
                raise RequestError(f"{name}: {why}", param=name)
        for name in _MOVES_CACHES & _keys(body.get("vllm_xargs")):
            raise RequestError(f"vllm_xargs.{name}: {_REFUSED[name]}", param=f"vllm_xargs.{name}")
        for name in body:
            if name != "merge" and get_close_matches(name, ["merge"], cutoff=0.8):
                raise RequestError(
                    f"{name}: there is no such field; did you mean merge?", param=name
                )
        _check_tokens(body, vocabulary)
        if path.startswith(_CHATS):
            check_messages(body.get("messages"))
        if body.get("use_beam_search") is True:
            for name in _NOT_SEARCHED:
                if body.get(name) is not None:
                    raise RequestError(
                        f"{name}: beam search keeps to no format; send it without use_beam_search",
                        param=name,
                    )

    def warnings(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """What of a body is not heeded."""
        for name in body.keys() - self.fields.get(path, body.keys()) - _OURS:
            yield f"{name[:64]}: unknown, ignored"
        if body.get("use_beam_search") is True and "use_beam_search" in self.fields.get(path, ()):
            for name in _NOT_HEEDED:
                if body.get(name) is not None:
                    yield f"{name}: ignored by beam search"


def _fields(route: APIRoute) -> Iterator[str]:
    for parameter in route.dependant.body_params:
        kind = parameter.field_info.annotation
        for model in get_args(kind) or (kind,):
            if isinstance(model, type) and issubclass(model, BaseModel):
                for name, field in model.model_fields.items():
                    yield name
                    if field.alias:
                        yield field.alias


def _check_tokens(body: Mapping[str, Any], vocabulary: int) -> None:
    for name in _TOKEN_IDS:
        for token in _integers(body.get(name)):
            _check_token(name, token, vocabulary)
    bias = body.get("logit_bias")
    for key in bias if isinstance(bias, Mapping) else ():
        if re.fullmatch(r"-?[0-9]{1,99}", key):
            _check_token("logit_bias", int(key), vocabulary)


def _keys(value: Any) -> set[Any]:
    return set(value) if isinstance(value, Mapping) else set()


def _integers(value: Any) -> Iterator[int]:
    """In a list, or in lists of a list."""
    for one in value if isinstance(value, list) else ():
        if isinstance(one, list):
            yield from (token for token in one if isinstance(token, int))
        elif isinstance(one, int):
            yield one


def _check_token(name: str, token: int, vocabulary: int) -> None:
    if not 0 <= token < vocabulary:
        raise RequestError(
            f"{name}: token id {token} is not in the vocabulary, whose ids are 0 to"
            f" {vocabulary - 1}",
            param=name,
        )


# The messages of a chat


def check_messages(messages: Any, place: str = "messages") -> None:
    """Raise RequestError for a chat without messages, and for parts or tool calls that are none.

    Pydantic checks the parts of a content only when vLLM reads them, where it cannot say whose they
    are.
    """
    if messages == []:
        raise _wrong(place, "a chat has at least one message")
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        where = f"{place}.{i}"
        if isinstance(message, list):
            check_messages(message, where)
        if not isinstance(message, Mapping):
            continue
        if not isinstance(message.get("role"), str):
            raise _wrong(f"{where}.role", "each message has one, such as user")
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise _wrong(f"{where}.tool_calls", "it should be a list")
        content = message.get("content")
        if isinstance(content, Mapping):
            raise _wrong(f"{where}.content", "it should be a string or a list of parts")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            _check_part(part, f"{where}.content.{j}")


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, Mapping):
        raise _wrong(
            where, 'a part of a content is an object such as {"type": "text", "text": "..."}'
        )
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _kinds():
        known = ", ".join(sorted(_kinds()))
        found = "it is missing" if kind is None else f"{str(kind)[:40]!r} is no kind of content"
        raise _wrong(f"{where}.type", f"{found}; these are: {known}")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise _wrong(f"{where}.text", "it should be a string")


def _wrong(where: str, why: str) -> RequestError:
    return RequestError(f"{where}: {why}", param=where)


@cache
def _kinds() -> frozenset[str]:
    """All that `type` may be of a part."""
    return frozenset(_literals(ChatCompletionContentPartParam))


def _literals(kind: Any) -> Iterator[str]:
    for one in get_args(kind) or (kind,):
        if isinstance(one, type) and hasattr(one, "__required_keys__"):
            for value in _values(get_type_hints(one).get("type")):
                yield str(value)
        elif get_origin(one) is not None:
            yield from _literals(one)


def _values(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for inner in get_args(hint):
            yield from _values(inner)
