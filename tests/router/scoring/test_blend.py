"""Mixes of proportions: on the grid, of few experts, of the sum that was meant."""

import pytest

from adapters.mix import Mix, MixRules
from router.scoring.blend import blend, find_rounding

RULES = MixRules(frozenset("abc"), layers=2, grid=0.1, max_experts=2)


def test_a_mix_has_the_largest_weights_on_the_grid_and_their_sum() -> None:
    assert blend({"a": 0.58, "b": 0.31, "c": 0.11}, RULES) == Mix.of({"a": 0.7, "b": 0.3})


def test_rounding_is_that_of_the_coefficient_that_was_moved_most() -> None:
    weights = {"a": 0.58, "b": 0.31, "c": 0.11}
    assert find_rounding(weights, blend(weights, RULES)) == pytest.approx(0.12)
    assert find_rounding({"a": 1.0}, blend({"a": 1.0}, RULES)) == 0.0
    assert find_rounding({}, Mix()) is None
