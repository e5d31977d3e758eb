"""Put the `merge` field into answers: into the object, or into the last chunk of a stream."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from tta_serve.decided import Routed
from tta_serve.protocol import MergeInfo

_DONE = "data: [DONE]"


async def annotated(answer: AsyncGenerator[Any, None], routed: Routed, *, stream: bool) -> AsyncGenerator[Any, None]:
    """vLLM's answer with `merge` in it.

    A stream begins with what `merge` will say, so that the ingress can set headers: before the first token, or with it if the
    mix is decided in the pass that makes it.
    """
    async with aclosing(answer):
        if stream:
            first = [] if routed.info else [item async for item in _first(answer)]
            yield routed.told()
            async for item in _streamed(first, answer, routed.told()):
                yield item
            return
        async for item in answer:
            if outcome(item) == "ok":
                item.merge = routed.told().model_dump()
            yield item


async def _first(answer: AsyncIterator[Any]) -> AsyncIterator[Any]:
    with suppress(StopAsyncIteration):
        yield await anext(answer)


async def _streamed(first: list[Any], answer: AsyncGenerator[Any, None], info: MergeInfo) -> AsyncIterator[Any]:
    """Chunks as they come; only one that may be the last is held back, until the next shows whether it was."""
    held: str | None = None
    async for batch in _chained(first, answer):
        if not isinstance(batch, list):  # an error in place of a stream
            yield batch
            continue
        out = []
        for chunk in batch:
            if not isinstance(chunk, str):
                out.append(chunk)
                continue
            if held is not None:
                out.append(_with_merge(held, info) if chunk.startswith(_DONE) else held)
                held = None
            if _may_be_last(chunk):
                held = chunk
            else:
                out.append(chunk)
        if out:
            yield out
    if held is not None:
        yield [_with_merge(held, info)]


async def _chained(first: list[Any], rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for item in first:
        yield item
    async for item in rest:
        yield item


def _may_be_last(chunk: str) -> bool:
    """A chunk that ends a choice, or the usage chunk, which has no choices."""
    return '"finish_reason":"' in chunk or '"choices":[]' in chunk


def _with_merge(chunk: str, info: MergeInfo) -> str:
    data = json.loads(chunk.removeprefix("data: "))
    data["merge"] = info.model_dump()
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def outcome(item: Any) -> str:
    """ok, client_error or error: what one item of an answer says of its request."""
    first = item[0] if isinstance(item, list) and item else item
    error = getattr(first, "error", None)
    if error is None:
        return "error" if isinstance(first, str) and first.startswith('data: {"error"') else "ok"
    return "client_error" if 400 <= int(error.code) < 500 else "error"
