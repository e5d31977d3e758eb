"""Merges by Fisher information and second moments: minima, means, and a real layer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapters.merge.calibrated import fisher, lot, regmean
from tests.factories.deltas import draw

Inputs = list[Tensor]


def made_inputs(experts: int = 3, size: int = 6, samples: int = 20) -> Inputs:
    return [draw(samples, size, seed=10 + k) * torch.linspace(0.2, 2, size) for k in range(experts)]


def grams_of(inputs: Inputs) -> Tensor:
    return torch.stack([x.double().t() @ x.double() for x in inputs])


def shares(*weights: float) -> Tensor:
    return torch.tensor(weights) / sum(weights)


def drift(merged: Tensor, deltas: Tensor, weights: Tensor, inputs: Inputs) -> float:
    """Return sum_k w_k |X_k (T - T_k)^T|^2."""
    rows = zip(weights, deltas, inputs, strict=True)
    return sum(
        float(w * (x.double() @ (merged - delta).double().t()).square().sum())
        for w, delta, x in rows
    )


def test_fisher_is_the_weighted_mean_of_each_entry() -> None:
    deltas, fishers, weights = draw(3, 4, 5), draw(3, 4, 5, seed=1).square(), shares(1, 2, 3)
    merged = fisher(deltas, weights, fishers=fishers)
    for i, j in np.ndindex(4, 5):
        pairs = [
            (float(w * f[i, j]), float(d[i, j]))
            for w, f, d in zip(weights, fishers, deltas, strict=True)
        ]
        assert float(merged[i, j]) == pytest.approx(
            sum(f * d for f, d in pairs) / sum(f for f, _ in pairs), rel=1e-4
        )


def test_fisher_of_equal_information_or_none_is_the_mean() -> None:
    deltas, weights = draw(2, 7), shares(1, 3)
    for fishers in (draw(1, 7, seed=1).square().expand(2, 7), torch.zeros(2, 7)):
        assert_close(fisher(deltas, weights, fishers=fishers), (weights[:, None] * deltas).sum(0))


def test_fisher_floors_what_is_less() -> None:
    merged = fisher(
        torch.tensor([[1.0], [3.0]]), shares(1, 1), fishers=torch.tensor([[0.5], [0.0]]), floor=0.25
    )
    assert_close(merged, torch.tensor([(0.5 * 1 + 0.25 * 3) / 0.75]))


@pytest.mark.parametrize("method", [regmean, lot])
def test_of_equal_grams_it_is_the_mean(method: Callable[..., Tensor]) -> None:
    deltas, weights = draw(3, 4, 6), shares(1, 2, 3)
    grams = grams_of(made_inputs(1)).expand(3, 6, 6)
    assert_close(
        method(deltas, weights, grams=grams),
        torch.einsum("k,koi->oi", weights, deltas),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("method", [regmean, lot])
def test_one_expert_alone_comes_back(method: Callable[..., Tensor]) -> None:
    deltas = draw(1, 4, 6)
    assert_close(
        method(deltas, torch.ones(1), grams=grams_of(made_inputs(1))),
        deltas[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_regmean_is_the_published_formula() -> None:
    """On whole weights, [in, out] as published, the off-diagonal entries scaled one by one."""
    base, deltas, inputs, weights = (
        draw(4, 6, seed=9),
        draw(3, 4, 6),
        made_inputs(),
        shares(1, 2, 3),
    )
    left, right = np.zeros((6, 6)), np.zeros((6, 4))
    for weight, delta, x in zip(weights.tolist(), deltas, inputs, strict=True):
        gram = (x.double().t() @ x.double()).numpy()
        for i, j in np.ndindex(6, 6):
            gram[i, j] *= 1 if i == j else 0.7
        left += weight * gram
        right += weight * gram @ (base + delta).double().t().numpy()
    expected = torch.from_numpy((np.linalg.inv(left) @ right).T).float() - base
    assert_close(
        regmean(deltas, weights, grams=grams_of(inputs), off_diagonal=0.7),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_lot_minimises_the_drift_of_the_features_and_regmean_nearly() -> None:
    deltas, inputs, weights = draw(3, 4, 6), made_inputs(), shares(1, 2, 3)
    best = lot(deltas, weights, grams=grams_of(inputs))
    least = drift(best, deltas, weights, inputs)
    for seed in range(10):
        assert drift(best + 0.01 * draw(4, 6, seed=seed), deltas, weights, inputs) > least
    scaled = [
        drift(
            regmean(deltas, weights, grams=grams_of(inputs), off_diagonal=a),
            deltas,
            weights,
            inputs,
        )
        for a in (0, 0.5, 0.99)
    ]
    assert scaled[0] > scaled[1] > scaled[2] > least


def test_lot_is_regmean_without_scaling_where_that_is_well_posed() -> None:
    deltas, weights, grams = draw(3, 4, 6), shares(1, 1, 1), grams_of(made_inputs())
    almost = regmean(deltas, weights, grams=grams, off_diagonal=1 - 1e-9)
    assert_close(lot(deltas, weights, grams=grams), almost, rtol=1e-4, atol=1e-5)


def test_lot_leaves_the_base_where_there_were_no_inputs() -> None:
    deltas, inputs = draw(2, 4, 6), made_inputs(2, samples=2)
    merged = lot(deltas, shares(1, 1), grams=grams_of(inputs))
    unseen = torch.linalg.svd(torch.cat(inputs))[2][4:].t()
    assert_close(merged @ unseen, torch.zeros(4, 2), rtol=0, atol=1e-4)
    for x, delta in zip(inputs, deltas, strict=True):
        assert_close(x @ merged.t(), x @ delta.t(), rtol=1e-3, atol=1e-3)


def test_regmean_gives_inputs_that_were_always_zero_no_delta() -> None:
    deltas, inputs = draw(2, 4, 6), made_inputs(2)
    for x in inputs:
        x[:, 3] = 0
    merged = regmean(deltas, shares(1, 1), grams=grams_of(inputs))
    assert torch.equal(merged[:, 3], torch.zeros(4))
    seen = [0, 1, 2, 4, 5]
    reduced = regmean(
        deltas[:, :, seen], shares(1, 1), grams=grams_of([x[:, seen] for x in inputs])
    )
    assert_close(merged[:, seen], reduced, rtol=1e-4, atol=1e-5)
