"""Streams: every chunk in its order, `merge` in the last one only."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tta_serve.answer import annotated, outcome
from tta_serve.decided import Routed
from tta_serve.protocol import MergeInfo

INFO = MergeInfo(policy="retrieval", experts={"sql": 1.0}, mix="abc")
ROUTED = Routed("retrieval", info=INFO)
DONE = "data: [DONE]\n\n"


def chunk(text: str, end: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": end}
    return f"data: {json.dumps({'choices': [choice]}, separators=(',', ':'))}\n\n"


USAGE = 'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'


def stream(batches: list[Any]) -> list[Any]:
    async def given() -> AsyncGenerator[Any, None]:
        for batch in batches:
            yield batch

    async def read() -> list[Any]:
        return [item async for item in annotated(given(), ROUTED, stream=True)]

    first, *rest = asyncio.run(read())
    assert first is INFO
    return [c for item in rest for c in (item if isinstance(item, list) else [item])]


def bare(text: str) -> str:
    """A chunk without its merge field."""
    if text == DONE:
        return text
    data = json.loads(text.removeprefix("data: "))
    data.pop("merge", None)
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk("a"), chunk("b", "stop"), DONE],
        [chunk("a"), chunk("b", "length"), USAGE, DONE],
        [chunk("a"), chunk("b", "stop", 1), chunk("c", None, 0), chunk("d", "stop", 0), DONE],
        [chunk('say "finish_reason":"stop" and "choices":[] please'), chunk("b", "stop"), DONE],
        [chunk("a"), chunk("b", "stop")],
    ],
    ids=["plain", "usage", "several-choices", "text-that-looks-like-an-end", "no-done"],
)
def test_merge_is_in_the_last_chunk_and_nothing_else_changes(chunks: list[str]) -> None:
    for batches in ([[c] for c in chunks], [chunks]):
        out = stream(batches)
        assert [bare(c) for c in out] == chunks
        data = [c for c in out if c != DONE]
        assert ["merge" in json.loads(c.removeprefix("data: ")) for c in data] == [False] * (len(data) - 1) + [True]
        assert json.loads(data[-1].removeprefix("data: "))["merge"] == INFO.model_dump()


def test_chunks_that_cannot_be_the_last_are_not_held_back() -> None:
    async def read_two() -> list[Any]:
        async def endless() -> AsyncGenerator[Any, None]:
            yield [chunk("a")]
            await asyncio.sleep(3600)

        answer = annotated(endless(), ROUTED, stream=True)
        return [await anext(answer), await asyncio.wait_for(anext(answer), 1)]

    assert asyncio.run(read_two()) == [INFO, [chunk("a")]]


def test_an_error_inside_a_stream_counts_as_one() -> None:
    assert outcome(['data: {"error": {"message": "x"}}\n\n']) == "error"
    assert outcome([chunk("a")]) == "ok"
