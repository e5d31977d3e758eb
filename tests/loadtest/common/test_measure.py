"""Interleaved repeats and what is made of them."""

from loadtest.common.measure import median_ratio, rotate


def test_every_name_is_first_once() -> None:
    names = ["a", "b", "c"]
    assert [rotate(names, by)[0] for by in range(4)] == ["a", "b", "c", "a"]
    assert all(sorted(rotate(names, by)) == names for by in range(4))


def test_what_slows_a_whole_round_cancels() -> None:
    assert median_ratio([10, 1, 100], [20, 2, 200]) == 0.5
