"""A library without example prompts learns from the requests that pin its experts."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor

from adapters.library.library import Library
from router.decision import Prompt
from tests.factories import tiny_library
from tests.factories.counting_engine import CountingEngine
from tests.factories.experts import make_expert
from tta_serve.config.sections import ServeConfig
from tta_serve.engine.client.engine_client import EngineClient
from tta_serve.protocol import ExpertChange
from tta_serve.serving.experts import pinned_requests
from tta_serve.serving.experts.live_experts import LiveExperts
from tta_serve.serving.experts.pinned_requests import MOST_WAITING, PINNED_FILE, PinnedOffer

MATH, SQL = "math", "sql"


class Base(CountingEngine):
    """A base that reads a text as how often it has each word, times something."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    async def step(self) -> None:
        """Run a token of the base."""

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        await self._ask("features", text, chat)
        words = [word for word in text.split() if word in tiny_library.WORDS]
        counts = torch.tensor([float(words.count(word)) for word in tiny_library.WORDS])
        return (counts + 0.1 * chat) * self.factor


def say(expert: str, number: int) -> str:
    """Return one of many prompts of an expert, or of what none should answer."""
    spread = f"w{60 + number % 4} w{56 + number // 4 % 4}"
    about = {MATH: "w4 w5 w6 w3", SQL: "w41 w19 w41 w50"}.get(expert, "w20 w27 w21")
    return f"{about} {spread}"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two experts without example prompts."""
    root = tiny_library.make_library(tmp_path)
    for name in (MATH, SQL):
        (root / name / "examples.txt").unlink()
    everyday = [say("", number) for number in range(20)]
    (tmp_path / "everyday.txt").write_text("\n".join(everyday), encoding="utf-8")
    return root


def make_config(library: Path, **sections: Any) -> ServeConfig:
    return ServeConfig.model_validate(
        {
            "model": {"id": "demo", "source": "x"},
            "library": {
                "path": library,
                "readings": None,
                "everyday": library.parent / "everyday.txt",
                "pinned": sections.pop("pinned", {}),
            },
            "policies": {
                "near": {"type": "retrieval"},
                "in": {"type": "retrieval", "inline": True},
            },
            "default_policy": "near",
            **sections,
        }
    )


class Server:
    """The experts of a server, and what is asked of them."""

    def __init__(self, config: ServeConfig, engine: Base) -> None:
        self.engine = engine
        self.live = LiveExperts(config, 2, cast(EngineClient, engine))

    @property
    def pinned(self) -> pinned_requests.PinnedRequests:
        assert self.live._pinned is not None
        return self.live._pinned

    def count(self, expert: str) -> int:
        return self.pinned.sample.count(self.live.current.digests[expert])

    def pin(self, expert: str, number: int, tenant: str | None = None, talk: str = "") -> None:
        view, prompt = self.live.find(tenant), Prompt(say(expert, number))
        self.live.keep_pinned(PinnedOffer(expert, view, prompt, tenant, talk or str(number)))

    async def pin_many(self, expert: str, numbers: range, tenant: str | None = None) -> None:
        for number in numbers:
            self.pin(expert, number, tenant)
            await self.settle()

    async def settle(self) -> None:
        while not self.pinned._waiting.empty():
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)

    async def look(self, *, sync: bool = False) -> None:
        await self.pinned.look(self.live, sync=sync)

    async def route(self, expert: str, number: int) -> dict[str, Any]:
        router = self.live.current.router
        [found] = await router.explain(Prompt(say(expert, number)), ["near"])
        return found.experts


def serve(
    config: ServeConfig, use: Callable[[Server], Coroutine[Any, Any, None]], factor: float = 1.0
) -> Base:
    """Start with the library as it is, use it, and stop. Returns the engine."""
    engine = Base(factor)

    async def run() -> None:
        server = Server(config, engine)
        await server.live.open(Library.open(config.library.path).digests)
        try:
            await use(server)
        finally:
            await server.live.close()

    asyncio.run(run())
    return engine


async def teach(server: Server, count: int = 12) -> None:
    for expert in (MATH, SQL):
        await server.pin_many(expert, range(count))
    await server.look()


def test_pinned_requests_make_an_expert_known_when_there_are_eight(library: Path) -> None:
    async def use(server: Server) -> None:
        assert await server.route(MATH, 50) == {}
        before = server.live.current
        await server.pin_many(MATH, range(7))
        await server.look()
        assert server.live.current is before, "seven are too few to make policies anew"
        await server.pin_many(MATH, range(7, 8))
        await server.look()
        assert server.live.current.pinned == {MATH: 8}
        assert server.live.current.versions["near"] != before.versions["near"]
        assert await server.route(MATH, 50) == {MATH: 1.0}
        assert await server.route(SQL, 50) != {SQL: 1.0}, "of which nothing is known yet"
        await server.pin_many(SQL, range(12))
        await server.look()
        for number in range(40, 60):
            assert await server.route(MATH, number) == {MATH: 1.0}
            assert await server.route(SQL, number) == {SQL: 1.0}
            assert await server.route("", number) == {}

    engine = serve(make_config(library), use)
    heads = [asked[1:] for asked in engine.asked if asked[0] == "install"]
    assert heads == [((),), ((MATH,),), ((MATH, SQL),)]


def test_policies_are_made_anew_at_eight_sixteen_and_so_on(library: Path) -> None:
    async def use(server: Server) -> None:
        made = []
        for number in range(100):
            await server.pin_many(MATH, range(number, number + 1))
            before = server.live.current
            await server.look()
            if server.live.current is not before:
                made.append(server.live.current.pinned[MATH])
        assert made == [8, 16, 32, 64]

    serve(make_config(library), use)


def test_the_next_start_knows_what_the_last_one_learned(library: Path) -> None:
    serve(make_config(library), teach)
    assert (library / PINNED_FILE).is_file()

    async def use(server: Server) -> None:
        assert server.live.current.pinned == {MATH: 12, SQL: 12}
        assert await server.route(SQL, 50) == {SQL: 1.0}
        server.pin(SQL, 3)
        assert server.pinned._waiting.empty(), "of a conversation that is kept already"

    serve(make_config(library), use)
    text = (library / PINNED_FILE).read_bytes()
    assert b"w41" not in text, "features, and no text"


def test_another_base_and_another_expert_begin_anew(library: Path) -> None:
    serve(make_config(library), teach)

    async def use(server: Server) -> None:
        assert server.live.current.pinned == {MATH: 12}
        assert (server.count(MATH), server.count(SQL)) == (12, 0)

    shutil.rmtree(library / SQL)
    make_expert(library / SQL, library.parent / "base", seed=9, layers=range(2), rank=2)
    serve(make_config(library), use)

    async def use_another(server: Server) -> None:
        assert server.live.current.pinned == {}

    serve(make_config(library), use_another, factor=1.5)


def test_a_tenant_has_its_share_and_sees_its_own_experts_alone(library: Path) -> None:
    keys = {name: {"sha256": name[0] * 64, "tenant": name} for name in ("flood", "calm")}
    tenants = {"calm": {"experts": [SQL]}}
    config = make_config(library, access={"keys": keys, "tenants": tenants})

    async def use(server: Server) -> None:
        await server.pin_many(SQL, range(200), "flood")
        assert server.count(SQL) == 16, "a quarter of 64"
        await server.pin_many(SQL, range(10), "calm")
        assert server.count(SQL) == 26
        await server.pin_many(MATH, range(9), "flood")
        await server.look()
        assert server.live.current.pinned == {MATH: 9, SQL: 26}
        assert server.live.current.tenants["calm"].pinned == {SQL: 26}

    serve(config, use)


def test_what_comes_too_fast_is_dropped_and_nobody_waits(library: Path) -> None:
    async def use(server: Server) -> None:
        server.engine.gate.clear()
        for number in range(100):
            server.pin(MATH, number)  # one that waited would wait for ever: nobody opens the gate
        assert server.pinned._waiting.qsize() == MOST_WAITING
        server.engine.gate.set()
        await server.settle()
        assert server.count(MATH) == MOST_WAITING
        server.engine.failures = 1
        server.pin(SQL, 0)
        await server.settle()
        assert server.count(SQL) == 0, "a failed probe is one example less"
        server.pin(SQL, 1)
        await server.settle()
        assert server.count(SQL) == 1

    serve(make_config(library), use)


@pytest.mark.parametrize(
    "prompt",
    [Prompt(" "), Prompt("w4 " * 30_000), Prompt("w4", in_prompt=False)],
    ids=["empty", "long", "read"],
)
def test_what_says_nothing_of_an_expert_is_not_kept(library: Path, prompt: Prompt) -> None:
    async def use(server: Server) -> None:
        view = server.live.current
        server.live.keep_pinned(PinnedOffer(MATH, view, prompt, None, "a talk"))
        await server.settle()
        assert server.count(MATH) == 0

    serve(make_config(library), use)


def test_policies_are_not_made_anew_during_a_change_nor_twice_at_once(library: Path) -> None:
    async def use(server: Server) -> None:
        live = server.live
        await server.pin_many(MATH, range(8))
        await live.stage("change", ExpertChange(SQL, True, live.current.digests[SQL]))
        before = live.current
        await server.look()
        assert live.current is before
        await live.discard("change")
        with live.hold() as held:
            await server.look()
            assert (live.current.pinned, held) == ({MATH: 8}, before)
            await server.pin_many(MATH, range(8, 16))
            await server.look()
            assert live.current.pinned == {MATH: 8}, "somebody still sees the one before"
        await server.look()
        assert live.current.pinned == {MATH: 16}

    serve(make_config(library), use)


def test_an_expert_that_goes_takes_its_requests_with_it(library: Path) -> None:
    async def use(server: Server) -> None:
        await teach(server)
        live = server.live
        digest = live.current.digests[SQL]
        await live.stage("change", ExpertChange(SQL, True, digest))
        await live.commit("change")
        await server.look(sync=True)
        assert server.pinned.sample.count(digest) == 0
        assert live.current.pinned == {MATH: 12}
        assert REGISTRY.get_sample_value("tta_pinned_requests", {"expert": MATH}) == 12
        assert REGISTRY.get_sample_value("tta_pinned_requests", {"expert": SQL}) is None

    class Workers:
        async def unload(self, digest: str) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Base, "workers", Workers(), raising=False)
        serve(make_config(library), use)


def test_replicas_take_over_what_the_others_kept(library: Path) -> None:
    async def run() -> None:
        config = make_config(library)
        digests = Library.open(library).digests
        one, other = (Server(config, Base()) for _ in range(2))
        for server in (one, other):
            await server.live.open(digests)
        await one.pin_many(MATH, range(6))
        await other.pin_many(MATH, range(4, 12))
        for server in (one, other, one):
            await server.look(sync=True)
        assert one.count(MATH) == other.count(MATH) == 12, "two conversations came to both"
        for server, in_force in ((one, 12), (other, 8)):
            await server.look()
            assert server.live.current.pinned == {MATH: in_force}, "eight were enough before"
            await server.live.close()

    asyncio.run(run())


def test_without_the_setting_nothing_is_kept_and_the_start_names_it(library: Path) -> None:
    with pytest.raises(Exception, match=r"library\.pinned"):
        serve(make_config(library, pinned=None), teach)
    assert not (library / PINNED_FILE).exists()


def test_what_is_known_of_each_expert_is_said(library: Path) -> None:
    async def use(server: Server) -> None:
        def says() -> dict[str, str]:
            return {one.expert: one.says for one in server.live.describe_examples()}

        assert says()[MATH].startswith(
            "nothing yet, so retrieval never chooses it: send 8 requests"
        )
        assert "demo:math" in says()[MATH]
        await server.pin_many(MATH, range(3))
        assert "(3 pinned requests so far)" in says()[MATH]
        await server.pin_many(MATH, range(10))
        await server.look()
        assert says()[MATH].startswith("10 pinned requests")
        assert says()[SQL].startswith("nothing yet")

    (library / SQL / "examples.txt").write_text("w1\nw2", encoding="utf-8")
    serve(make_config(library), use)
    for name in (MATH, SQL):
        own = "\n".join(say(name, number) for number in range(9))
        (library / name / "examples.txt").write_text(own, encoding="utf-8")

    async def use_again(server: Server) -> None:
        known = server.live.describe_examples()
        assert [one.says for one in known] == ["9 example prompts"] * 2
        assert [one.pinned for one in known] == [0, 0], "they are not needed any more"

    serve(make_config(library), use_again)
