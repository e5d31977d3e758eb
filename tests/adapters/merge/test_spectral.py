"""Spectral merges against slow loops of the published formulas, dense and on factors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert, LowRank
from adapters.merge.merged import merge_experts
from adapters.merge.method import Method
from adapters.merge.spectral import ROWS, dc_merge, iso_c, iso_cts, knots, opcm, star, tsv_m, wudi
from tests.factories.deltas import draw

Array = np.ndarray[Any, np.dtype[np.float64]]
EXACT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def made(experts: int = 3, shape: tuple[int, int] = (12, 10), seed: int = 0) -> Tensor:
    """Return full-rank deltas, [experts, out, in]."""
    return draw(experts, *shape, seed=seed)


def made_factors(
    ranks: tuple[int, ...] = (3, 2, 0, 4), shape: tuple[int, int] = (20, 16), seed: int = 0
) -> list[LowRank]:
    g = torch.Generator().manual_seed(seed)
    return [
        LowRank(torch.randn(r, shape[1], generator=g), torch.randn(shape[0], r, generator=g))
        for r in ranks
    ]


def ones(deltas: Tensor) -> Tensor:
    return torch.ones(len(deltas))


def singular_values(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(matrix.double())
    return values


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return u, s, vt


def polar(matrix: Array) -> Array:
    u, _, vt = svd(matrix)
    return u @ vt


def slow_ties(deltas: list[Array], weights: list[float], density: float) -> Array:
    """Merge by TIES, one entry at a time."""
    trimmed = []
    for delta in deltas:
        least = np.sort(np.abs(delta), axis=None)[-max(1, int(density * delta.size))]
        trimmed.append(np.where(np.abs(delta) >= least, delta, 0))
    merged = np.zeros_like(deltas[0])
    for place in np.ndindex(merged.shape):
        votes = [(w * t[place], abs(w)) for w, t in zip(weights, trimmed, strict=True)]
        sign = np.sign(sum(vote for vote, _ in votes))
        agreeing = [(vote, size) for vote, size in votes if np.sign(vote) == sign != 0]
        if agreeing:
            merged[place] = sum(vote for vote, _ in agreeing) / sum(size for _, size in agreeing)
    return merged


def slow_star(deltas: list[Array], weights: list[float]) -> Array:
    merged = np.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        u, s, vt = svd(delta)
        rank = next(r for r in range(1, len(s) + 1) if s[:r].sum() >= 0.4 * s.sum())
        for i in range(rank):
            merged += weight * s[i] * s.sum() / s[:rank].sum() * np.outer(u[:, i], vt[i])
    return merged


def slow_tsv_m(deltas: list[Array], weights: list[float]) -> Array:
    keep = min(deltas[0].shape) // len(deltas)
    parts = [svd(w * d) for w, d in zip(weights, deltas, strict=True)]
    u, v = np.hstack([p[0][:, :keep] for p in parts]), np.vstack([p[2][:keep] for p in parts])
    merged: Array = polar(u) @ np.diag(np.concatenate([p[1][:keep] for p in parts])) @ polar(v)
    return merged


def slow_iso_c(deltas: list[Array], weights: list[float]) -> Array:
    u, s, vt = svd(
        sum((w * d for w, d in zip(weights, deltas, strict=True)), start=np.zeros_like(deltas[0]))
    )
    return u @ np.diag(np.full_like(s, s.mean())) @ vt


def slow_iso_cts(deltas: list[Array], weights: list[float]) -> Array:
    scaled, n, experts = (
        [w * d for w, d in zip(weights, deltas, strict=True)],
        min(deltas[0].shape),
        len(deltas),
    )
    common = n - round((n - int(n * 0.8)) / experts) * experts
    own = (n - common) // experts
    u, s, vt = svd(np.sum(scaled, 0))
    us, ss, vts = [u[:, :common]], [s[:common]], [vt[:common]]
    for delta in scaled:
        rest = svd(delta - us[0] @ us[0].T @ delta)
        us, ss, vts = [*us, rest[0][:, :own]], [*ss, rest[1][:own]], [*vts, rest[2][:own]]
    merged: Array = polar(np.hstack(us)) @ polar(np.vstack(vts)) * np.concatenate(ss).mean()
    return merged


def slow_knots(deltas: list[Array], weights: list[float]) -> Array:
    u, s, vt = svd(np.hstack(deltas))
    return u @ slow_ties(
        [np.diag(s) @ block for block in np.split(vt, len(deltas), axis=1)], weights, 1.0
    )


def slow_dc_merge(deltas: list[Array], weights: list[float]) -> Array:
    experts, keep = len(deltas), min(deltas[0].shape) // len(deltas)
    parts = [svd(d) for d in deltas]
    left, right = (
        polar(np.hstack([p[0][:, :keep] for p in parts])),
        polar(np.vstack([p[2][:keep] for p in parts])),
    )
    flat = [u[:, :keep] @ np.diag(np.full(keep, s[:keep].mean())) @ vt[:keep] for u, s, vt in parts]
    core = slow_ties([left.T @ d @ right.T for d in flat], weights, 0.1)
    return left @ (core * np.kron(np.eye(experts), np.ones((keep, keep)))) @ right


def slow_opcm(deltas: list[Array], weights: list[float]) -> Array:
    """Merge with the running lambda and full singular vectors, as published."""
    scaled = [w * d for w, d in zip(weights, deltas, strict=True)]
    merged, previous, norms = scaled[0], 1.0, [np.linalg.norm(scaled[0])]
    for delta in scaled[1:]:
        norms.append(np.linalg.norm(delta))
        u, s, vt = np.linalg.svd(merged, full_matrices=True)
        core = u.T @ delta @ vt.T
        block = int(np.argmax(np.cumsum(s) / s.sum() > 0.5))
        np.fill_diagonal(core, 0)
        core[:block, :block] = 0
        new = previous * merged + u @ core @ vt
        previous = float(np.linalg.norm(new) / np.mean(norms))
        merged = new / previous
    return merged


SLOW = [
    (star, slow_star),
    (tsv_m, slow_tsv_m),
    (iso_c, slow_iso_c),
    (iso_cts, slow_iso_cts),
    (knots, slow_knots),
    (dc_merge, slow_dc_merge),
    (opcm, slow_opcm),
]
IN_ANY_ORDER = [star, tsv_m, iso_c, iso_cts, knots, dc_merge, wudi]


@pytest.mark.parametrize("shape", [(12, 10), (9, 14)])
@pytest.mark.parametrize(("method", "slow"), SLOW, ids=lambda f: f.__name__)
def test_is_the_published_formula(
    method: Callable[..., Tensor],
    slow: Callable[[list[Array], list[float]], Array],
    shape: tuple[int, int],
) -> None:
    deltas, weights = made(shape=shape), [1.0, 0.5, 2.0]
    expected = slow(list(deltas.double().numpy()), weights)
    assert_close(
        method(deltas.clone(), torch.tensor(weights)), torch.from_numpy(expected).float(), **EXACT
    )


@pytest.mark.parametrize(("ranks", "shape"), [((3, 2, 0, 4), (20, 16)), ((6, 5, 4, 3), (10, 9))])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_on_factors_is_the_same_as_dense(
    row: Method, ranks: tuple[int, ...], shape: tuple[int, int]
) -> None:
    factors, weights = made_factors(ranks, shape), torch.tensor([1.0, 0.5, 3.0, 2.0])
    assert row.thin
    thin = row.thin(
        factors, weights, **{name: option.default for name, option in row.options.items()}
    )
    assert isinstance(thin, LowRank)
    assert thin.rank <= sum(factor.rank for factor in factors)
    dense = row.function(torch.stack([factor.dense() for factor in factors]), weights)
    assert isinstance(dense, Tensor)
    assert dense.norm() > 1
    assert_close(thin.dense(), dense, **EXACT)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_through_the_driver_low_rank_experts_stay_low_rank(row: Method) -> None:
    """One of the experts leaves the weight alone."""
    experts = [LowRankDeltas(Expert("made", {"up": f})) for f in made_factors() if f.rank]
    experts.append(LowRankDeltas(Expert("made", {"other": made_factors((2,), seed=1)[0]})))
    merge = merge_experts(row.name, experts)
    factors = merge.factors("up.weight")
    assert factors is not None
    assert factors.rank <= 9
    assert_close(factors.dense(), merge.delta("up.weight"), **EXACT)


@pytest.mark.parametrize("ratio", [1.0, 5.0])
def test_dc_merge_and_knots_take_their_options_on_factors(ratio: float) -> None:
    by_name, factors = {row.name: row for row in ROWS}, made_factors()
    deltas, weights = torch.stack([factor.dense() for factor in factors]), torch.ones(4)
    for method, options in [
        ("dc_merge", {"density": 0.3, "ratio": ratio, "scale": 2.0}),
        ("knots", {"density": 0.4, "scale": 0.5}),
        ("star", {"share": 0.7}),
        ("iso_cts", {"common": 0.5}),
        ("opcm", {"alpha": 0.8}),
    ]:
        row = by_name[method]
        assert row.thin
        result = row.thin(factors, weights, **options)
        assert isinstance(result, LowRank)
        assert_close(result.dense(), row.function(deltas.clone(), weights, **options), **EXACT)


@pytest.mark.parametrize("method", IN_ANY_ORDER)
def test_the_order_of_experts_does_not_matter(method: Callable[..., Tensor]) -> None:
    deltas, weights = made(seed=3), torch.tensor([1.0, 0.5, 2.0])
    order = [2, 0, 1]
    assert_close(method(deltas[order], weights[order]), method(deltas.clone(), weights), **EXACT)


def test_opcm_depends_on_the_order() -> None:
    deltas = made(seed=3)
    assert not torch.allclose(
        opcm(deltas, ones(deltas)), opcm(deltas.flip(0), ones(deltas)), atol=1e-2
    )


@pytest.mark.parametrize("method", [tsv_m, knots, opcm, wudi])
def test_one_expert_alone_comes_back(method: Callable[..., Tensor]) -> None:
    deltas = made(1)
    assert_close(method(deltas.clone(), ones(deltas)), deltas[0], **EXACT)


@pytest.mark.parametrize("method", [*IN_ANY_ORDER, opcm])
def test_a_merge_of_zeros_is_zero(method: Callable[..., Tensor]) -> None:
    assert_close(method(torch.zeros(2, 4, 3), torch.ones(2)), torch.zeros(4, 3))


def test_star_keeps_the_nuclear_norm() -> None:
    delta = made(1)
    merged = star(delta, torch.ones(1))
    assert_close(singular_values(merged).sum(), singular_values(delta[0]).sum(), rtol=1e-5, atol=0)
    kept = int((singular_values(merged) > 1e-4).sum())
    share = singular_values(delta[0]).cumsum(0) / singular_values(delta[0]).sum()
    assert share[kept - 1] >= 0.4 > share[kept - 2]


def test_tsv_m_and_knots_and_wudi_sum_experts_of_orthogonal_spaces() -> None:
    deltas = torch.zeros(2, 12, 10)
    deltas[0, :5, :4], deltas[1, 5:, 4:] = made(1, (5, 4))[0], made(1, (7, 6), seed=1)[0]
    turn_out, turn_in = (torch.linalg.qr(made(1, (n, n), seed=2)[0])[0] for n in (12, 10))
    deltas = turn_out @ deltas @ turn_in
    for method in (tsv_m, knots, wudi):
        assert_close(method(deltas.clone(), torch.ones(2)), deltas.sum(0), **EXACT)


def test_tsv_m_of_equal_experts_adds_no_direction_of_its_own() -> None:
    factor = made_factors((3,))[0]
    assert_close(tsv_m(torch.stack([factor.dense()] * 2), torch.ones(2)), factor.dense(), **EXACT)


def test_iso_c_has_a_flat_spectrum_and_the_nuclear_norm_of_the_sum() -> None:
    deltas = made()
    values = singular_values(iso_c(deltas, ones(deltas)))
    assert_close(values, torch.full_like(values, float(values.mean())), rtol=1e-4, atol=0)
    assert_close(values.sum(), singular_values(deltas.sum(0)).sum(), rtol=1e-5, atol=0)


def test_iso_cts_of_only_common_directions_is_iso_c() -> None:
    deltas = made()
    assert_close(iso_cts(deltas, ones(deltas), common=1.0), iso_c(deltas, ones(deltas)), **EXACT)


def test_iso_cts_has_a_flat_spectrum() -> None:
    deltas = made()
    values = singular_values(iso_cts(deltas, ones(deltas), common=0.4))
    assert_close(values, torch.full_like(values, float(values.mean())), rtol=1e-4, atol=0)


def test_knots_of_agreeing_experts_is_their_mean() -> None:
    delta = made(1)[0]
    deltas = torch.stack([delta, 3 * delta])
    assert_close(knots(deltas.clone(), torch.ones(2)), 2 * delta, **EXACT)
    assert_close(knots(deltas.clone(), torch.ones(2), scale=0.5), delta, **EXACT)


def test_dc_merge_smooths_to_the_ratio_and_keeps_the_sum_of_singular_values() -> None:
    delta = made(1)
    for ratio in (1.0, 1.5):
        values = singular_values(dc_merge(delta, torch.ones(1), density=1.0, ratio=ratio))
        assert_close(values[0] / values[-1], torch.tensor(ratio).double(), rtol=1e-3, atol=0)
        assert_close(values.sum(), singular_values(delta[0]).sum(), rtol=1e-4, atol=0)


def test_opcm_adds_nothing_along_what_is_there_and_all_that_is_orthogonal() -> None:
    first, second = torch.zeros(6, 5), torch.zeros(6, 5)
    first[:2, :2], second[:2, :2] = (
        torch.diag(torch.tensor([2.0, 1.0])),
        torch.diag(torch.tensor([1.0, -3.0])),
    )
    second[2:, 2:] = made(1, (4, 3))[0]
    merged = opcm(torch.stack([first, second]), torch.ones(2))
    rest = second.clone()
    rest[:2, :2] = 0
    direction = first + rest
    assert_close(merged, direction * (first.norm() + second.norm()) / 2 / direction.norm(), **EXACT)


def interference(merged: Tensor, deltas: Tensor) -> Tensor:
    """Return WUDI's loss as published."""
    products = (merged - deltas) @ deltas.transpose(1, 2)
    return (products.square().sum((1, 2)) / deltas.square().sum((1, 2))).sum()


def test_wudi_has_no_gradient_and_any_step_from_it_is_worse() -> None:
    deltas = made(shape=(6, 14)).double()
    merged = wudi(deltas, ones(deltas)).requires_grad_()
    loss = interference(merged, deltas)
    loss.backward()
    assert merged.grad is not None
    assert float(merged.grad.abs().max()) < 1e-8
    with torch.no_grad():
        for seed in range(5):
            assert interference(merged + 0.01 * made(1, (6, 14), seed)[0], deltas) > loss


def test_wudi_by_steps_is_adam_on_the_published_loss() -> None:
    deltas = made(2, (5, 4)) * 1e-3
    merged = deltas.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(40):
        optimizer.zero_grad()
        interference(merged, deltas).backward()
        optimizer.step()
    assert float((merged.detach() - deltas.sum(0)).abs().max()) > 1e-4
    assert_close(wudi(deltas, torch.ones(2), steps=40), merged.detach(), rtol=0, atol=2e-6)


def test_wudi_by_steps_comes_to_the_exact_minimum() -> None:
    deltas = made(2, (6, 4)) * 0.05
    exact, start = wudi(deltas, torch.ones(2)), deltas.sum(0)
    stepped = wudi(deltas, torch.ones(2), steps=12000)
    assert float((start - exact).norm()) > 0.1
    assert float((stepped - exact).norm()) < 0.05 * float((start - exact).norm())


def test_wudi_by_steps_on_factors_takes_the_same_steps() -> None:
    row, factors = {row.name: row for row in ROWS}["wudi"], made_factors((2, 1), (5, 4))
    assert row.thin
    result = row.thin(factors, torch.ones(2), steps=7)
    assert isinstance(result, Tensor)
    assert_close(result, wudi(torch.stack([f.dense() for f in factors]), torch.ones(2), steps=7))
