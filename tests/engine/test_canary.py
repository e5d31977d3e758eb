"""The canary is content as long as the weights are those that it first saw, and then no more."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adapters.mix import Mix
from tests.factories.engines import Engine
from tests.factories.offline_client import Front, Numbers
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base, write_library
from tta_serve.engine.client.engine_client import EngineClient
from tta_serve.serving.replica.canary import FRESH_S, Canary, CanaryError


class World:
    """An engine, its canary, and a clock that a test moves on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = 0.0
        self.front = Front(engine.llm, Numbers())
        self.canary = Canary(EngineClient(self.front, 64), lambda: self.now)
        [worker] = engine.llm.collective_rpc(lambda worker: worker)
        self.model: Any = worker._tta_manager.model

    async def check(self, *experts: str) -> None:
        self.now += FRESH_S + 1
        await self.canary.check(experts or ("few", "small"), self.engine.digests)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("canary")
    base = write_base(folder / "base", BASES["llama"])
    with tiny_engine(base, write_library(folder / "library", base)) as engine:
        yield engine


def test_it_is_content_among_other_requests(engine: Engine) -> None:
    world = World(engine)

    async def run() -> None:
        for mix in (Mix(), Mix.of({"rslora": 1.0}), Mix.of({"few": -1.0, "small": 0.7})):
            asked = [world.front.ask(p, mix, engine.digests) for p in prompts()]
            await asyncio.gather(world.check(), *asked)
        await world.check("rslora")

    asyncio.run(run())


@pytest.mark.parametrize("what", ["base", "expert"])
def test_it_notices_a_weight_that_was_overwritten(engine: Engine, what: str) -> None:
    world = World(engine)
    with torch.no_grad():
        asyncio.run(world.check())
        model = world.engine.llm.collective_rpc(lambda worker: worker.model_runner.get_model())[0]
        if what == "base":
            changed = [model.model.norm.weight]
        else:
            changed = [bank._a for bank in world.model._banks.by_site.values()]
        try:
            for tensor in changed:
                tensor.mul_(-2)
            says = "the base" if what == "base" else "a mix of few and small"
            with pytest.raises(CanaryError, match=f"{says} answers with other weights"):
                asyncio.run(world.check())
        finally:
            for tensor in changed:
                tensor.mul_(-0.5)
        asyncio.run(world.check())


def test_whoever_asks_again_soon_costs_the_engine_nothing(engine: Engine) -> None:
    world = World(engine)
    asyncio.run(world.check())
    numbers = world.canary._numbers.__reduce__()
    asyncio.run(world.canary.check(("few",), engine.digests))
    assert world.canary._numbers.__reduce__() == numbers
