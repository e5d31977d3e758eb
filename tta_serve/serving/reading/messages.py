"""Check the messages of a chat as far as nobody else looks at them.

Pydantic checks the parts of a content only when vLLM reads them, where it cannot say whose they
are.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vllm.entrypoints.chat_utils import ChatCompletionContentPartParam

from tta_serve.exceptions import RequestError


def check_messages(messages: Any, place: str = "messages") -> None:
    """Raise RequestError for a chat without messages, and for parts or tool calls that are none."""
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
