"""`python -m loadtest pages`, on weights of no size."""

from loadtest.commands.pages import SHAPES, allocate, count_huge_bytes, time_both


def test_weights_in_both_kinds_of_pages_are_whole() -> None:
    for huge in (False, True):
        weight = allocate((576, 192), huge=huge)
        assert weight.shape == (576, 192)
        assert weight.std() > 0.9
    assert count_huge_bytes() >= 0


def test_a_pair_of_passes_has_two_times() -> None:
    weights = {huge: [allocate((192, 576), huge=huge)] for huge in (False, True)}
    assert all(taken > 0 for number in (0, 1) for taken in time_both(weights, 2, number))


def test_the_products_are_those_of_135_million_weights() -> None:
    assert sum(rows * columns for rows, columns in SHAPES) // 10**6 == 134
