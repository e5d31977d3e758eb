"""Merging in place over HTTP: one mix at a time, gone before the next."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from loadtest.common.workload import EXPERTS
from loadtest.sides.in_turn import MergeInTurn
from tests.factories.asgi import Got, asked, call, spoken

PATH = "/v1/completions"


class Weights:
    """What is merged at the moment, in place of an engine."""

    def __init__(self) -> None:
        self.mixed: list[dict[str, float]] = []
        self.installed: list[str] = []

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        await asyncio.sleep(0)
        if method == "bench_install":
            self.installed.append(args[0])
        elif method == "bench_merge":
            self.mixed.append(args[0])
        else:
            assert method == "bench_restore"
            self.mixed.clear()


def serving(weights: Weights) -> Starlette:
    """An app that streams what is merged, again and again, and the body that it got."""

    async def answer(request: Request) -> Response:
        body = await request.json()
        if body.get("fail"):
            raise RuntimeError("as asked")

        async def parts() -> AsyncIterator[str]:
            for _ in range(5):
                await asyncio.sleep(0.001)
                yield f"{weights.mixed};"
            yield str(body)

        return StreamingResponse(parts())

    async def health(request: Request) -> Response:
        return PlainTextResponse(str(weights.mixed))

    routes = [Route(PATH, answer, methods=["POST"]), Route("/health", health)]
    app = Starlette(routes=routes, middleware=[Middleware(MergeInTurn)])
    app.state.engine_client = weights
    return app


def body(coefficients: dict[str, float]) -> bytes:
    return spoken({"prompt": "p", "merge": {"experts": coefficients}})


def test_each_of_many_at_once_is_answered_by_its_own_mix_alone() -> None:
    weights = Weights()
    mixes = [{"sql": i / 20} for i in range(1, 9)]
    app = serving(weights)

    async def all_of_them() -> list[Got]:
        return await asyncio.gather(*(call(app, "POST", PATH, body(mix)) for mix in mixes))

    for got, mix in zip(asyncio.run(all_of_them()), mixes, strict=True):
        *seen, rest = got.body.decode().split(";")
        assert seen == [str([mix])] * 5
        assert rest == str({"prompt": "p"}), "the server knows no mixes"
    assert weights.mixed == []
    assert weights.installed == [str(EXPERTS)], "once"


def test_a_mix_goes_where_answering_fails_too() -> None:
    weights = Weights()
    failing = spoken({"fail": True, "merge": {"experts": {"sql": 1.0}}})
    with pytest.raises(RuntimeError, match="as asked"):
        asked(serving(weights), "POST", PATH, failing)
    assert weights.mixed == []


def test_who_asks_for_no_answer_does_not_wait() -> None:
    weights = Weights()
    assert asked(serving(weights), "GET", "/health").body == b"[]"
    assert weights.installed == []
