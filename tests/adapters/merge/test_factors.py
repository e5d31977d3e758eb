"""CoPA against the authors' formula, one entry at a time."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters.errors import MergeError
from adapters.expert import LowRank
from adapters.merge.factors import copa


def made(ranks: tuple[int, ...], shape: tuple[int, int] = (7, 9), seed: int = 0) -> list[LowRank]:
    g = torch.Generator().manual_seed(seed)
    return [
        LowRank(torch.randn(r, shape[1], generator=g), torch.randn(shape[0], r, generator=g))
        for r in ranks
    ]


def slow_mask(matrix: np.ndarray, density: float) -> np.ndarray:
    threshold = np.sort(np.abs(matrix), axis=None)[int(matrix.size * (1 - density)) - 1]
    return np.where(np.abs(matrix) >= threshold, matrix, 0)


def slow_copa(factors: list[LowRank], weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.zeros(factors[0].a.shape), np.zeros(factors[0].b.shape)
    total = np.zeros(factors[0].rank)
    for weight, factor in zip(weights, factors, strict=True):
        raw_a, raw_b = factor.a.double().numpy(), factor.b.double().numpy()
        kept_a, kept_b = slow_mask(raw_a, 0.2), slow_mask(raw_b, 0.2)
        s = np.ones(factor.rank)
        for row in range(factor.rank):
            if np.abs(kept_a[row]).sum():
                s[row] = np.abs(raw_a[row]).sum() / np.abs(kept_a[row]).sum()
        s = np.maximum(s, sorted(s)[int(factor.rank * 0.8)])
        a += 2 * weight * kept_a
        b += 2 * weight * kept_b * s
        total += s
    return a, b / total


@pytest.mark.parametrize("seed", range(5))
def test_copa_is_the_authors_formula(seed: int) -> None:
    factors, weights = made((4, 4, 4), seed=seed), [1.0, 0.5, 2.0]
    a, b = slow_copa(factors, weights)
    merged = copa(factors, torch.tensor(weights))
    assert_close(merged.a, torch.from_numpy(a).float(), rtol=1e-5, atol=1e-6)
    assert_close(merged.b, torch.from_numpy(b).float(), rtol=1e-5, atol=1e-6)


def test_a_row_of_which_nothing_is_left_is_not_amplified() -> None:
    factor = LowRank(torch.tensor([[1e-3, 1e-3], [5.0, 4.0]]), torch.ones(3, 2))
    merged = copa([factor], torch.ones(1), density=0.25)
    assert torch.equal(merged.a[0], torch.zeros(2))
    assert torch.isfinite(merged.b).all()


def test_without_pruning_it_averages_the_factors_apart() -> None:
    factors = made((3, 3))
    merged = copa(factors, torch.ones(2), density=1.0, scale=1.0)
    assert_close(merged.a, factors[0].a + factors[1].a)
    assert_close(merged.b, (factors[0].b + factors[1].b) / 2)


def test_it_is_no_merge_of_the_deltas() -> None:
    one, other = made((3, 3))
    again = LowRank(2 * one.a, one.b / 2)
    assert_close(again.dense(), one.dense())
    assert not torch.allclose(
        copa([one, other], torch.ones(2)).dense(),
        copa([again, other], torch.ones(2)).dense(),
        atol=0.1,
    )


def test_an_expert_that_leaves_the_weight_alone_takes_no_part() -> None:
    one, other, nothing = made((3, 3, 0))
    for part, whole in zip(
        copa([one, nothing, other], torch.ones(3)), copa([one, other], torch.ones(2)), strict=True
    ):
        assert_close(part, whole)


def test_experts_of_different_ranks_are_refused() -> None:
    with pytest.raises(MergeError, match=r"one rank, got ranks \[2, 3\]; compress"):
        copa(made((2, 3)), torch.ones(2))


def test_the_order_of_experts_does_not_matter() -> None:
    factors, weights, order = made((3, 3, 3)), torch.tensor([1.0, 0.5, 2.0]), [2, 0, 1]
    for part, whole in zip(
        copa([factors[k] for k in order], weights[order]), copa(factors, weights), strict=True
    ):
        assert_close(part, whole)
