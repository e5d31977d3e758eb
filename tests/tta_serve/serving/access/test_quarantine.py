"""Requests that the engine died of: who is suspected, for how long, and who is refused."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.factories.kept_text import MemoryText
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.quarantine import (
    DEATHS,
    MOST_SUSPECTS,
    SUSPECT_S,
    Quarantine,
    identify_request,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 30))


async def is_refused(quarantine: Quarantine, key: str) -> bool:
    try:
        async with quarantine.watch(lambda: key):
            return False
    except RequestError as error:
        return error.status == 422


def test_who_was_there_at_enough_deaths_is_refused_until_it_is_forgotten() -> None:
    async def steps() -> None:
        clock = Clock()
        quarantine = Quarantine(MemoryText(), clock)
        for _ in range(DEATHS):
            assert not await is_refused(quarantine, "bad")
            await quarantine.blame("bad")
        assert await is_refused(quarantine, "bad")
        assert not await is_refused(quarantine, "good")
        clock.now += SUSPECT_S + 1
        await quarantine.refresh()
        assert not await is_refused(quarantine, "bad")

    run(steps())


def test_an_answer_ends_the_suspicion() -> None:
    async def steps() -> None:
        text = MemoryText()
        quarantine = Quarantine(text)
        for _ in range(DEATHS - 1):
            await quarantine.blame("innocent")
        await quarantine.clear(lambda: "innocent")
        await quarantine.clear(lambda: "nobody")
        await quarantine.blame("innocent")
        assert not await is_refused(quarantine, "innocent")
        assert b'"deaths":1' in (text.text or b"")

    run(steps())


def test_suspects_run_one_at_a_time_and_others_beside_them() -> None:
    async def steps() -> None:
        quarantine = Quarantine(MemoryText())
        for key in "ab":
            await quarantine.blame(key)
        inside: list[str] = []
        end = asyncio.Event()

        async def ask(key: str) -> None:
            async with quarantine.watch(lambda: key):
                inside.append(key)
                await end.wait()

        tasks = [asyncio.create_task(ask(key)) for key in "abxy"]
        await asyncio.sleep(0.05)
        assert sorted(inside) == ["a", "x", "y"]
        end.set()
        await asyncio.gather(*tasks)
        assert sorted(inside) == ["a", "b", "x", "y"]

    run(steps())


def test_replicas_share_what_they_know_and_a_new_one_learns_it() -> None:
    async def steps() -> None:
        text = MemoryText()
        one, other = Quarantine(text), Quarantine(text)
        await one.blame("bad")
        await other.blame("bad")
        await one.blame("bad")
        new = Quarantine(text)
        for quarantine in (other, new):
            await quarantine.refresh()
            assert await is_refused(quarantine, "bad")

    run(steps())


def test_the_latest_suspects_are_kept() -> None:
    async def steps() -> None:
        text = MemoryText()
        quarantine = Quarantine(text)
        for number in range(MOST_SUSPECTS + 3):
            await quarantine.blame(str(number))
        found = (text.text or b"").count(b"deaths")
        assert found == MOST_SUSPECTS
        assert b'"0":' not in (text.text or b"")

    run(steps())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"prompt": "x"}, {"prompt": "x", "stream": True, "user": "me"}, True),
        ({"prompt": "x", "n": 1}, {"n": 1, "prompt": "x"}, True),
        ({"prompt": "x"}, {"prompt": "y"}, False),
        ({"prompt": "x"}, {"prompt": "x", "merge": {"policy": "base"}}, False),
        ({"prompt": "\ud800"}, {"prompt": "\ud801"}, False),
    ],
)
def test_requests_are_the_same_if_the_engine_sees_no_difference(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    path = "/v1/completions"
    assert (identify_request(path, one) == identify_request(path, other)) == same
    assert identify_request(path, one) != identify_request("/v1/responses", one)


def test_while_nobody_is_suspect_no_request_is_read_for_its_key() -> None:
    def identify() -> str:
        raise AssertionError

    async def steps() -> None:
        quarantine = Quarantine(MemoryText())
        async with quarantine.watch(identify):
            pass
        await quarantine.clear(identify)

    run(steps())
