"""Many questions to the engine at once."""

import asyncio

import pytest

from router.probing import gather_all


def test_answers_come_in_order_from_sixteen_at_a_time() -> None:
    running, most = 0, 0

    async def ask(k: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (k % 3))
        running -= 1
        return -k

    assert asyncio.run(gather_all(ask, range(40))) == [-k for k in range(40)]
    assert most == 16


def test_the_first_error_ends_the_rest() -> None:
    asked = []

    async def ask(k: int) -> int:
        asked.append(k)
        await asyncio.sleep(0)
        if k == 3:
            raise ConnectionError("gone")
        await asyncio.sleep(60)
        return k

    async def scenario() -> None:
        with pytest.raises(ConnectionError):
            await gather_all(ask, range(100))
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    asyncio.run(scenario())
    assert len(asked) < 20
