"""A policy that fails again and again is left alone, and asked again by one request at a time."""

import asyncio
from collections import Counter

import pytest

from tta_serve.serving.routing.policy_breaker import FAILURES, PAUSE_S, PausedError, PolicyBreaker


class World:
    """A breaker, and a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses = 0
        self.breaker = PolicyBreaker(self.count, lambda: self.now)

    def count(self) -> None:
        self.pauses += 1

    def ask(self, outcome: type[BaseException] | None = None) -> str:
        try:
            with self.breaker.watch(TimeoutError):
                if outcome is not None:
                    raise outcome
        except BaseException as error:
            return type(error).__name__
        return "answered"


@pytest.fixture
def world() -> World:
    return World()


def test_it_is_left_alone_after_failures_in_a_row(world: World) -> None:
    said = [world.ask(TimeoutError) for _ in range(FAILURES + 3)]
    assert Counter(said) == {"TimeoutError": FAILURES, "PausedError": 3}
    assert world.pauses == 1
    with pytest.raises(PausedError, match=f"failed {FAILURES} times in a row"):
        world.breaker.watch(TimeoutError).__enter__()


def test_an_answer_between_failures_begins_the_count_anew(world: World) -> None:
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert world.ask(TimeoutError) == "TimeoutError"
        assert world.ask() == "answered"
    assert world.pauses == 0


def test_after_the_pause_one_asks_and_its_answer_lets_all_in(world: World) -> None:
    for _ in range(FAILURES):
        world.ask(TimeoutError)
    world.now += PAUSE_S
    with world.breaker.watch(TimeoutError):
        assert world.ask() == "PausedError", "another asks already"
    assert world.ask() == "answered"


def test_after_the_pause_a_failure_begins_the_next_pause(world: World) -> None:
    for _ in range(FAILURES):
        world.ask(TimeoutError)
    world.now += PAUSE_S
    assert world.ask(TimeoutError) == "TimeoutError"
    assert world.ask() == "PausedError"
    assert world.pauses == 2


def test_one_that_never_comes_back_does_not_keep_the_policy_away_for_ever(world: World) -> None:
    for _ in range(FAILURES):
        world.ask(TimeoutError)
    world.now += PAUSE_S
    assert world.ask(asyncio.CancelledError) == "CancelledError", "the client has left"
    assert world.ask() == "PausedError"
    world.now += PAUSE_S
    assert world.ask() == "answered"


@pytest.mark.parametrize("other", [asyncio.CancelledError, KeyError])
def test_what_says_nothing_of_the_policy_is_not_counted(
    world: World, other: type[BaseException]
) -> None:
    for _ in range(FAILURES - 1):
        world.ask(TimeoutError)
    for _ in range(2 * FAILURES):
        assert world.ask(other) == other.__name__
    assert world.ask() == "answered"
