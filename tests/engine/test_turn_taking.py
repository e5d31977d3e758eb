"""Turns are bounded and fair, whatever comes, and long enough to pay for the switches."""

import random
from collections import defaultdict

import pytest

from tta_serve.engine.worker.dense.turn_taking import WORTH, TurnTaking

BOUND = 2.0
STEP = 0.02
SWITCH = 0.03


class World:
    """Steps of one key each, of any length, and keys that come and go."""

    def __init__(self, seed: int, keys: int, bound: float = BOUND) -> None:
        self.rng = random.Random(seed)
        self.turns = TurnTaking[str](bound)
        self.keys = [f"key {i}" for i in range(keys)]
        self.work: dict[str, int] = defaultdict(int)  # steps that are left to do
        self.since: dict[str, float] = {}
        self.waits: list[float] = []
        self.runs: dict[str, int] = defaultdict(int)
        self.switches = 0
        self.now = 100.0
        self._in: str | None = None

    def arrive(self, key: str, steps: int) -> None:
        self.work[key] += steps
        self.since.setdefault(key, self.now)

    def step(self) -> None:
        ready = {key for key, steps in self.work.items() if steps}
        key = self.turns.choose(ready, self.now)
        if key is None:
            assert not ready
            self.now += STEP
            return
        assert key in ready
        if key != self._in:
            self.switches += 1
            cost = SWITCH * self.rng.uniform(0.8, 1.0)
            self.now += cost
            self.turns.note_switch(cost)
            if self._in is not None and self.work[self._in]:
                self.since[self._in] = self.now
            self._in = key
        self.waits.append(self.now - self.since[key])
        self.now += STEP * self.rng.uniform(0.2, 1.0)
        self.since[key] = self.now
        self.runs[key] += 1
        self.work[key] -= 1
        if not self.work[key]:
            del self.since[key]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_longer_than_the_bound(seed: int) -> None:
    world = World(seed, keys=5)
    for _ in range(5000):
        if world.rng.random() < 0.1:
            world.arrive(world.rng.choice(world.keys), world.rng.choice([1, 5, 60, 400]))
        world.step()
    assert max(world.waits) < BOUND


def test_all_have_their_share_under_load() -> None:
    world = World(0, keys=8, bound=BOUND)
    for key in world.keys:
        world.arrive(key, 10_000)
    for _ in range(4000):
        world.step()
    assert max(world.waits) < BOUND
    assert min(world.runs.values()) > 0.7 * max(world.runs.values())


def test_switches_take_a_small_part_of_the_time_where_the_bound_allows() -> None:
    world = World(0, keys=3, bound=20.0)
    for key in world.keys:
        world.arrive(key, 10_000)
    began = world.now
    for _ in range(4000):
        world.step()
    assert world.switches * SWITCH < 1.2 / WORTH * (world.now - began)


def test_a_bound_that_cannot_be_held_still_starves_nobody() -> None:
    world = World(0, keys=5, bound=0.05)
    for key in world.keys:
        world.arrive(key, 100)
    for _ in range(500):
        world.step()
    assert set(world.runs.values()) == {100}


def test_whoever_can_run_nothing_passes_on_at_once() -> None:
    turns = TurnTaking[str](BOUND)
    assert turns.choose({"a"}, 0.0) == "a"
    turns.note_switch(1.0)
    assert turns.choose({"a", "b"}, 0.1) == "a"
    turns.pass_on()
    assert turns.choose({"a", "b"}, 0.2) == "b"
    turns.pass_on()
    assert turns.choose({"a", "b"}, 0.3) == "a"
    turns.pass_on()
    assert turns.choose({"a"}, 0.4) == "a", "nobody else is there"
    assert turns.choose(set(), 0.5) is None


def test_the_one_that_has_waited_longest_is_next() -> None:
    turns = TurnTaking[str](BOUND)
    turns.note_switch(0.1)
    turns.choose({"a"}, 0.0)
    turns.choose({"a", "b"}, 0.0)
    assert turns.choose({"b", "c"}, 0.1) == "b"
    assert turns.choose({"c", "d"}, 0.2) == "c"
