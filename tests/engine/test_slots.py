"""The slot table, against a model of what it promises."""

import random

import pytest

from tta_serve.engine.worker.slots import SlotTable


def test_slots_are_recycled_least_recently_used() -> None:
    table: SlotTable[int] = SlotTable(3)
    first = dict(table.bind([1, 2, 3]))
    assert table.bind([1]) == []
    assert table.bind([4]) == [(4, first[2])]
    assert table.ids() == {1, 3, 4}


def test_a_mix_of_the_same_step_is_never_pushed_out_however_old() -> None:
    table: SlotTable[int] = SlotTable(3)
    table.bind([1, 2, 3])
    table.bind([2, 3])
    new = table.bind([9, 8, 1])  # 1 is the oldest, and needed now
    assert {i for i, _ in new} == {9, 8}
    assert 1 in table


def test_slots_are_distinct_and_never_the_bases_through_any_sequence() -> None:
    rng = random.Random(0)
    table: SlotTable[int] = SlotTable(5)
    row: dict[int, int] = {}  # what a reader of the coefficient table would find
    for _ in range(2000):
        if rng.random() < 0.1:
            table.remove(rng.randint(1, 12))
        step = rng.sample(range(1, 13), rng.randint(0, 5))
        row |= {slot: i for i, slot in table.bind(step)}
        slots = [table.slot(i) for i in step]
        assert [row[s] for s in slots] == step
        assert len(set(slots)) == len(slots)
        assert all(1 <= s <= 5 for s in slots)
        assert len(table) <= 5
    assert table.slot(0) == 0


def test_clear_gives_all_slots_back() -> None:
    table: SlotTable[int] = SlotTable(2)
    table.bind([1, 2])
    table.clear()
    assert len(table) == 0
    assert sorted(s for _, s in table.bind([3, 4])) == [1, 2]


def test_more_mixes_than_slots_in_one_step_is_our_bug() -> None:
    table: SlotTable[int] = SlotTable(1)
    with pytest.raises(AssertionError):
        table.bind([1, 2])
