"""Who is let into the engine: in turn between requests, never more than there is room for, and
nobody for ever.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tta_serve.exceptions import RequestError
from tta_serve.serving.access.admission import Admission, Admitted


class Engine:
    """Counts the samples in it, and writes down who came in.

    Attributes:
        gate: Open while prompts may end.
    """

    def __init__(self, room: int, most: int = 10_000) -> None:
        self.admission = Admission(room, most)
        self.room = room
        self.inside = 0
        self.came: list[str] = []
        self.gate = asyncio.Event()

    async def prompt(self, who: Admitted, name: str, samples: int = 1) -> None:
        async with who.room_for(samples):
            taken = min(samples, self.room)
            self.came.append(name)
            self.inside += taken
            assert self.inside <= self.room
            try:
                await self.gate.wait()
                await asyncio.sleep(0)
            finally:
                self.inside -= taken

    async def request(
        self, name: str, prompts: int, samples: int = 1, tenant: str | None = None
    ) -> None:
        """All prompts at once, as vLLM hands them over."""
        with self.admission.admit(prompts * samples, tenant) as who:
            async with asyncio.TaskGroup() as group:
                for _ in range(prompts):
                    group.create_task(self.prompt(who, name, samples))

    async def empty(self) -> None:
        """All of the room can be had, and as many can be admitted as at first."""
        assert self.inside == 0
        with self.admission.admit(self.admission._most) as who:
            async with asyncio.timeout(1), who.room_for(self.room):
                pass


async def settle() -> None:
    """Let everybody go on who can."""
    for _ in range(20):
        await asyncio.sleep(0)


def running(run: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        async with asyncio.timeout(60):
            await run()

    asyncio.run(go())


def test_a_small_request_does_not_wait_for_a_thousand_prompts_of_another() -> None:
    async def run() -> None:
        engine = Engine(room=8)
        large = asyncio.create_task(engine.request("large", 1000))
        await settle()
        assert engine.came == ["large"] * 8
        small = asyncio.create_task(engine.request("small", 1))
        await settle()
        engine.gate.set()
        await small
        assert not large.done()
        assert engine.came.index("small") <= 8 + 1, "it is the next but one that comes in"
        await large
        assert engine.came.count("large") == 1000
        await engine.empty()

    running(run)


def test_many_requests_come_in_by_turns() -> None:
    async def run() -> None:
        engine = Engine(room=1)
        first = asyncio.create_task(engine.request("first", 1))
        await settle()
        others = [asyncio.create_task(engine.request(name, 3)) for name in "abc"]
        await settle()
        engine.gate.set()
        await asyncio.gather(first, *others)
        assert engine.came == ["first", *"abcabcabc"]

    running(run)


def test_tenants_come_in_by_turns_however_many_requests_each_has() -> None:
    async def run() -> None:
        engine = Engine(room=1)
        first = asyncio.create_task(engine.request("first", 1))
        await settle()
        many = [asyncio.create_task(engine.request("many", 2, tenant="a")) for _ in range(20)]
        await settle()
        few = [asyncio.create_task(engine.request("few", 1, tenant="b")) for _ in range(3)]
        await settle()
        engine.gate.set()
        await asyncio.gather(first, *many, *few)
        assert engine.came == ["first", *["many", "few"] * 3, *["many"] * 37]
        await engine.empty()

    running(run)


def test_a_tenant_fills_its_part_of_the_queue_and_no_more() -> None:
    admission = Admission(room=2, most=10, most_each=6)
    with pytest.raises(RequestError, match="at most 6 at once"), admission.admit(7, "a"):
        pass
    with admission.admit(5, "a"):
        with pytest.raises(RequestError, match="your requests") as later, admission.admit(2, "a"):
            pass
        assert later.value.status == 429
        with admission.admit(5, "b"), pytest.raises(RequestError, match="the server's queue"):
            admission.admit(1, "c").__enter__()
        with admission.admit(1, "a"):
            pass


class Clock:
    """A clock that stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_what_would_come_too_late_is_turned_away_at_once() -> None:
    async def run() -> None:
        clock = Clock()
        admission = Admission(room=2, most=100, clock=clock)
        with admission.admit(1, within_s=1e-9) as who:  # nobody knows yet how long one stays
            async with who.room_for(1):
                clock.now += 4
        assert admission.estimate_wait(2) == 0, "there is room"
        assert admission.estimate_wait(12) == 20, "by five roomfuls of its own"

        with ExitStack() as inside:
            for _ in range(4):
                inside.enter_context(admission.admit(1))
            inside.enter_context(admission.admit(20, prompts=10))
            assert admission.estimate_wait(1) == 4 * 5 / 2, "before it go 4, and 2 of the 20"
            with (
                pytest.raises(RequestError, match=r"about 10\.0 s, and .* within 9\.5 s") as late,
                admission.admit(1, within_s=9.5),
            ):
                pass
            assert (late.value.status, late.value.headers) == (503, {"retry-after": "8"})
            with admission.admit(1, within_s=10.5):
                pass
        assert admission.estimate_wait(2) == 0

    running(run)


def test_who_is_cut_off_would_have_stayed_longer() -> None:
    async def run() -> None:
        clock = Clock()
        admission = Admission(room=1, most=100, clock=clock)

        async def stay(took_s: float, *, cut: bool) -> None:
            with suppress(TimeoutError), admission.admit(1) as who:
                async with who.room_for(1):
                    clock.now += took_s
                    if cut:
                        raise TimeoutError

        await stay(3, cut=True)
        assert admission.estimate_wait(2) == 3
        await stay(1, cut=True)
        assert admission.estimate_wait(2) == 3, "it may have stayed any longer"
        await stay(1, cut=False)
        assert admission.estimate_wait(2) == pytest.approx(2.8)

    running(run)


def test_what_is_there_is_taken_at_once_and_order_is_kept_as_soon_as_anybody_waits() -> None:
    async def run() -> None:
        engine = Engine(room=3)
        two = asyncio.create_task(engine.request("two", 1, samples=2))
        await settle()
        large = asyncio.create_task(engine.request("large", 1, samples=3))
        await settle()
        late = asyncio.create_task(engine.request("late", 1))
        await settle()
        assert engine.came == ["two"], "one sample would fit, and does not overtake"
        engine.gate.set()
        await asyncio.gather(two, large, late)
        assert engine.came == ["two", "large", "late"]
        await engine.empty()

    running(run)


def test_more_samples_than_there_is_room_for_have_all_of_the_room() -> None:
    async def run() -> None:
        engine = Engine(room=4)
        engine.gate.set()
        await engine.request("n=64", 2, samples=64)
        assert engine.came == ["n=64"] * 2
        await engine.empty()

    running(run)


def test_who_is_cancelled_while_waiting_blocks_nobody() -> None:
    async def run() -> None:
        engine = Engine(room=1)
        first = asyncio.create_task(engine.request("first", 1))
        await settle()
        waiting = {name: asyncio.create_task(engine.request(name, 5)) for name in "abcd"}
        await settle()
        for name in "acd":
            waiting[name].cancel()
        await settle()
        engine.gate.set()
        await asyncio.gather(first, waiting["b"])
        assert engine.came == ["first", *"bbbbb"]
        await engine.empty()

    running(run)


def test_who_is_cancelled_while_its_turn_comes_hands_it_on() -> None:
    async def run() -> None:
        engine = Engine(room=1)
        with engine.admission.admit(3) as who:
            inside = asyncio.create_task(engine.prompt(who, "first"))
            await settle()
            chosen = asyncio.create_task(engine.prompt(who, "chosen"))
            after = asyncio.create_task(engine.prompt(who, "after"))
            await settle()
            inside.cancel()
            await asyncio.sleep(0)  # it has left, and the one that is chosen has not gone on yet
            chosen.cancel()
            await settle()
            engine.gate.set()
            await after
        assert engine.came == ["first", "after"]
        await engine.empty()

    running(run)


def test_who_is_cancelled_inside_leaves_its_room() -> None:
    async def run() -> None:
        engine = Engine(room=2)
        inside = asyncio.create_task(engine.request("inside", 1, samples=2))
        after = asyncio.create_task(engine.request("after", 2))
        await settle()
        inside.cancel()
        await settle()
        assert engine.came == ["inside", "after", "after"]
        engine.gate.set()
        await after
        await engine.empty()

    running(run)


def test_a_request_that_can_never_be_admitted_is_400_and_one_that_must_wait_too_long_429() -> None:
    admission = Admission(room=2, most=10)
    with (
        pytest.raises(RequestError, match=r"asks for 11 answers .* at most 10") as never,
        admission.admit(11),
    ):
        pass
    assert (never.value.status, never.value.headers) == (400, None)
    with admission.admit(6):
        with pytest.raises(RequestError, match="full; try again") as later, admission.admit(5):
            pass
        assert (later.value.status, later.value.headers) == (429, {"retry-after": "1"})
        with admission.admit(4):
            pass
    with admission.admit(10):
        pass


def test_what_ends_in_an_error_is_admitted_no_longer() -> None:
    admission = Admission(room=2, most=10)
    for _ in range(3):
        with pytest.raises(KeyError), admission.admit(10):
            raise KeyError
    with admission.admit(10):
        pass


@st.composite
def comings(draw: st.DrawFn) -> list[tuple[int, int, int, int | None]]:
    """Of each request: prompts, samples, how long until the next one comes, and which one is
    cancelled then.
    """
    found = []
    for i in range(draw(st.integers(1, 20))):
        cancelled = draw(st.none() | st.integers(0, i))
        prompts, samples, pause = draw(
            st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(0, 5))
        )
        found.append((prompts, samples, pause, cancelled))
    return found


@given(room=st.integers(1, 6), requests=comings(), late=st.lists(st.integers(0, 19), max_size=5))
def test_whoever_comes_and_goes_all_others_are_answered_and_the_room_is_whole_again(
    room: int, requests: list[tuple[int, int, int, int | None]], late: list[int]
) -> None:
    async def run() -> None:
        engine = Engine(room)
        engine.gate.set()
        tasks: list[asyncio.Task[None]] = []
        gone: set[int] = set()

        def cancel(i: int) -> None:
            if i < len(tasks) and tasks[i].cancel():
                gone.add(i)

        for i, (prompts, samples, pause, cancelled) in enumerate(requests):
            tasks.append(asyncio.create_task(engine.request(str(i), prompts, samples)))
            for _ in range(pause):
                await asyncio.sleep(0)
            if cancelled is not None:
                cancel(cancelled)
        for i in late:
            cancel(i)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        for i, (prompts, *_) in enumerate(requests):
            if i not in gone:
                assert tasks[i].exception() is None
                assert engine.came.count(str(i)) == prompts
        await engine.empty()

    running(run)
