"""Softmax by name, and which shares count."""

import pytest
import torch

from router.scoring.shares import keep_best, softmax

SCORES = {"a": 0.3, "b": -1.2, "c": 2.0, "d": 0.3}


def test_softmax_is_softmax_and_does_not_depend_on_a_shift() -> None:
    wanted = torch.tensor(list(SCORES.values()), dtype=torch.float64).div(0.7).softmax(0).tolist()
    assert list(softmax(SCORES, 0.7).values()) == pytest.approx(wanted)
    assert softmax({name: score + 1000 for name, score in SCORES.items()}, 0.7) == pytest.approx(
        softmax(SCORES, 0.7)
    )
    assert softmax({}) == {}


def test_the_best_come_first_equal_ones_by_name_and_sum_to_one() -> None:
    assert list(keep_best(softmax(SCORES), 3).items()) == list(
        keep_best(softmax(dict(reversed(SCORES.items()))), 3).items()
    )
    best = keep_best({"d": 0.2, "a": 0.2, "c": 0.6}, 2)
    assert list(best) == ["c", "a"]
    assert best == pytest.approx({"c": 0.75, "a": 0.25})
    assert keep_best({"a": 0.05, "b": 0.4, "c": 0.4}, above=0.05) == {"b": 0.5, "c": 0.5}
    assert keep_best({"a": 0.0, "b": 1.0}, 2) == {"b": 1.0}, "what is nothing is not among the best"
