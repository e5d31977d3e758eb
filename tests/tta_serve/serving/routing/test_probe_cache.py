"""Probes are made once: which of them are the same, who waits for whom, what is counted."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import torch

from adapters.mix import Mix
from router.decision import Prompt
from router.probing import Window
from tests.factories.counting_engine import NAN, CountingEngine
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe

DIGESTS = {"sql": "d1", "math": "d2"}
SQL = Mix.of({"sql": 1.0})
MATH = Mix.of({"math": 1.0})


def probe(
    engine: CountingEngine, digests: dict[str, str] | None = None, most: int = 10
) -> ViewProbe:
    return ViewProbe(engine, digests or DIGESTS, ProbeCache(most))


def test_what_was_asked_is_not_asked_again_until_others_have_taken_its_place() -> None:
    async def run() -> None:
        engine = CountingEngine()
        asking = probe(engine, most=2)
        for text in ("a", "bb", "a", "ccc", "a", "bb"):
            assert (await asking.features(text)).tolist() == [len(text)] * 2
        assert [what[1] for what in engine.asked] == ["a", "bb", "ccc", "bb"]
        assert asking.passes == 4

    asyncio.run(run())


def test_a_comparison_is_known_by_all_that_its_result_depends_on() -> None:
    async def run() -> None:
        engine = CountingEngine()
        asking = probe(engine)
        first = Prompt("x"), [SQL, MATH], Window(8)
        others = [
            (Prompt("y"), [SQL, MATH], Window(8)),
            (Prompt("x", chat=False), [SQL, MATH], Window(8)),
            (Prompt("x"), [MATH, SQL], Window(8)),
            (Prompt("x"), [SQL], Window(8)),
            (Prompt("x"), [SQL, Mix.of({"math": 0.5})], Window(8)),
            (Prompt("x"), [SQL, MATH], Window(9)),
            (Prompt("x"), [SQL, MATH], Window(8, draft=2)),
        ]
        await asking.compare(*first)
        assert asking.passes == 3
        await asking.compare(Prompt("x", tenant="t", preference={"sql": 1}), *first[1:])
        assert len(engine.asked) == 1, "neither tenant nor preference is in the prompt that is run"
        for number, other in enumerate(others):
            await asking.compare(*other)
            assert len(engine.asked) == 2 + number
        assert asking.passes == 6 * 3 + 2 + 4, "the base and each candidate; a draft is one more"

    asyncio.run(run())


def test_views_share_what_is_the_same_whatever_an_expert_is_called_there() -> None:
    async def run() -> None:
        engine = CountingEngine()
        cache = ProbeCache()
        one = ViewProbe(engine, DIGESTS, cache)
        two = ViewProbe(engine, {"queries": "d1", "math": "other"}, cache)
        await one.compare(Prompt("x"), [SQL], Window())
        await two.compare(Prompt("x"), [Mix.of({"queries": 1.0})], Window())
        await two.features("x")
        await one.features("x")
        assert [what[0] for what in engine.asked] == ["compare", "features"]
        assert (one.passes, two.passes) == (2, 1)
        await two.compare(Prompt("x"), [MATH], Window())
        assert len(engine.asked) == 3, "another expert of that name"

    asyncio.run(run())


def test_activations_have_the_views_names_and_only_sites_of_its_experts() -> None:
    async def run() -> None:
        engine = CountingEngine()
        table = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, 6.0], [7.0, 8.0, NAN]])
        engine.found = replace(
            engine.found,
            sites=("s1", "s2", "s3"),
            arrow=table,
            spectr=table,
            norm=table,
            residual=table,
            inputs=torch.arange(3),
        )
        found = await probe(engine, {"a": "d2", "b": "d1", "c": "d1"}).activations("x")
        assert found.experts == ("a", "b", "c")
        assert found.sites == ("s1", "s3"), (
            "what another view's expert alone has is no business of this one"
        )
        wanted = torch.tensor([[NAN, 6.0], [1.0, 3.0], [1.0, 3.0]])
        for values in (found.arrow, found.spectr, found.norm, found.residual):
            torch.testing.assert_close(values, wanted, equal_nan=True)
        assert found.inputs.tolist() == [0, 2]
        other = await probe(engine, {"a": "d2", "whole": "d9"}).activations("x")
        assert other.experts == ("a",), "nobody knows what an expert of another form reads"

    asyncio.run(run())


def test_activations_are_asked_anew_when_the_experts_are_others() -> None:
    async def run() -> None:
        engine = CountingEngine()
        cache = ProbeCache()
        for digests in (DIGESTS, {"s": "d1", "m": "d2"}, {**DIGESTS, "new": "d3"}):
            await ViewProbe(engine, digests, cache).activations("x")
        assert len(engine.asked) == 2

    asyncio.run(run())


def waiting(run: Callable[[CountingEngine, ViewProbe], Awaitable[None]]) -> None:
    """Run with an engine whose passes do not end by themselves."""

    async def main() -> None:
        engine = CountingEngine()
        engine.gate.clear()
        await asyncio.wait_for(run(engine, probe(engine)), 10)

    asyncio.run(main())


async def started(*probes: Awaitable[torch.Tensor]) -> "list[asyncio.Future[torch.Tensor]]":
    tasks: list[asyncio.Future[torch.Tensor]] = [asyncio.ensure_future(one) for one in probes]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_equal_probes_at_the_same_time_are_one_pass() -> None:
    async def run(engine: CountingEngine, asking: ViewProbe) -> None:
        other = asking.counting()
        tasks = await started(asking.features("x"), other.features("x"), asking.features("y"))
        engine.gate.set()
        assert len({id(await task) for task in tasks}) == 2
        assert (len(engine.asked), asking.passes, other.passes) == (2, 2, 0)

    waiting(run)


def test_who_leaves_ends_the_pass_only_if_nobody_else_waits() -> None:
    async def run(engine: CountingEngine, asking: ViewProbe) -> None:
        first, second, alone = await started(
            asking.features("x"), asking.features("x"), asking.features("y")
        )
        first.cancel()
        alone.cancel()
        await asyncio.gather(first, alone, return_exceptions=True)
        engine.gate.set()
        assert (await second).tolist() == [1, 1]
        assert engine.ended == 1, "of x alone"
        await asking.features("y")
        assert engine.ended == 2

    waiting(run)


def test_a_failed_pass_fails_for_all_that_wait_and_is_tried_again() -> None:
    async def run(engine: CountingEngine, asking: ViewProbe) -> None:
        engine.failures = 1
        tasks = await started(asking.features("x"), asking.features("x"))
        engine.gate.set()
        for task in tasks:
            with pytest.raises(RuntimeError, match="no pass"):
                await task
        assert (await asking.features("x")).tolist() == [1, 1]
        assert len(engine.asked) == 2

    waiting(run)


def test_nothing_is_left_of_many_probes_but_the_latest_results() -> None:
    async def run() -> None:
        cache = ProbeCache(4)
        asking = ViewProbe(CountingEngine(), DIGESTS, cache)
        await asyncio.gather(*(asking.features(str(i % 20)) for i in range(200)))
        assert (len(cache._results), len(cache._running)) == (4, 0)

    asyncio.run(run())
