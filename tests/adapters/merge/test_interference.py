"""Interference of two experts against slow counts, and on experts whose angles are known."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert, LowRank
from adapters.merge.interference import Interference, compare, measure_cosines
from tests.factories.deltas import DenseDeltas

MODULE = "model.layers.0.mlp.up_proj"


def low_rank(factor: LowRank) -> LowRankDeltas:
    return LowRankDeltas(Expert("made", {MODULE: factor}))


def made(rank: int, seed: int, shape: tuple[int, int] = (12, 10)) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, shape[1], generator=g), torch.randn(shape[0], rank, generator=g)
    )


def only(rows: list[Interference]) -> Interference:
    (row,) = rows
    return row


def slow_overlap(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared cosine of the principal angles between two column spaces."""
    p, q = (
        np.linalg.svd(m, full_matrices=False)[0][:, : np.linalg.matrix_rank(m, tol=1e-4)]
        for m in (x, y)
    )
    return float(np.mean(np.linalg.svd(p.T @ q)[1] ** 2))


def test_a_row_is_what_slow_counts_say() -> None:
    first, second = made(3, 0), made(2, 1)
    x, y = (f.dense().double().numpy() for f in (first, second))
    row = only(compare(low_rank(first), low_rank(second)))
    pairs = [(x[i, j], y[i, j]) for i, j in np.ndindex(x.shape)]
    differ = [(p, q) for p, q in pairs if p * q < 0]
    assert row.weight == f"{MODULE}.weight"
    assert row.cosine == pytest.approx(
        (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), rel=1e-4
    )
    assert row.conflict == pytest.approx(len(differ) / len(pairs))
    mass = sum(min(abs(p), abs(q)) for p, q in differ) / sum(min(abs(p), abs(q)) for p, q in pairs)
    assert row.conflict_mass == pytest.approx(mass, rel=1e-4)
    assert row.overlap_out == pytest.approx(slow_overlap(x, y), rel=1e-4)
    assert row.overlap_in == pytest.approx(slow_overlap(x.T, y.T), rel=1e-4)
    assert (row.norm_a, row.norm_b) == pytest.approx(
        (np.linalg.norm(x), np.linalg.norm(y)), rel=1e-5
    )


def test_an_expert_agrees_with_itself_and_opposes_its_negative() -> None:
    factor = made(3, 0)
    same = only(compare(low_rank(factor), low_rank(LowRank(2 * factor.a, factor.b))))
    assert (same.cosine, same.conflict, same.conflict_mass) == pytest.approx((1, 0, 0), abs=1e-5)
    opposed = only(compare(low_rank(factor), low_rank(LowRank(factor.a, -factor.b))))
    assert (opposed.cosine, opposed.conflict, opposed.conflict_mass) == pytest.approx(
        (-1, 1, 1), abs=1e-5
    )
    for row in (same, opposed):
        assert (row.overlap_in, row.overlap_out) == pytest.approx((1, 1), abs=1e-5)


def test_spaces_at_a_known_angle_and_one_inside_the_other() -> None:
    eye, angle = torch.eye(6), 0.4
    tilted = (math.cos(angle) * eye[0] + math.sin(angle) * eye[1])[None]
    first, second = LowRank(eye[:1], eye[:, :2].sum(1, keepdim=True)), LowRank(tilted, eye[:, :1])
    row = only(compare(low_rank(first), low_rank(second)))
    assert row.overlap_in == pytest.approx(math.cos(angle) ** 2, rel=1e-5)
    assert row.overlap_out == pytest.approx(0.5, rel=1e-5)
    wide = only(
        compare(low_rank(LowRank(eye[:3], eye[:, :3])), low_rank(LowRank(eye[1:2], eye[:, 4:5])))
    )
    assert (wide.overlap_in, wide.overlap_out) == pytest.approx((1, 0), abs=1e-6)


def test_signs_are_compared_only_where_neither_is_zero() -> None:
    x = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.0]])
    y = torch.tensor([[2.0, 5.0, -1.0], [-4.0, 0.0, 0.0]])
    row = only(compare(DenseDeltas({"w.weight": x}), DenseDeltas({"w.weight": y})))
    assert row.conflict == pytest.approx(1 / 3)
    assert row.conflict_mass == pytest.approx(1 / 3)


def test_dense_deltas_of_low_rank_give_the_row_of_their_factors() -> None:
    first, second = made(3, 0), made(2, 1)
    factored = only(compare(low_rank(first), low_rank(second)))
    weight = f"{MODULE}.weight"
    for other in (low_rank(second), DenseDeltas({weight: second.dense()})):
        row = only(compare(DenseDeltas({weight: first.dense()}), other))
        for field in ("cosine", "conflict", "overlap_in", "overlap_out"):
            assert getattr(row, field) == pytest.approx(getattr(factored, field), rel=1e-4), field


def test_of_full_rank_deltas_the_largest_directions_are_compared() -> None:
    g = torch.Generator().manual_seed(0)
    noise = [1e-3 * torch.randn(12, 10, generator=g) for _ in range(2)]
    shared, x, y = made(1, 2), made(1, 3), made(1, 4)
    a, b = (
        DenseDeltas({"w.weight": 9 * shared.dense() + other.dense() + rest})
        for other, rest in zip((x, y), noise, strict=True)
    )
    assert only(compare(a, b, rank=1)).overlap_out == pytest.approx(1, abs=0.02)
    assert only(compare(a, b, rank=12)).overlap_in == pytest.approx(1, abs=1e-4)
    assert (only(compare(a, b, rank=2)).overlap_out or 0) < 0.9


def test_only_weights_of_both_have_rows_and_vectors_have_no_spaces() -> None:
    a = DenseDeltas({"one.weight": torch.ones(2, 2), "norm.weight": torch.tensor([1.0, -2.0, 0.0])})
    b = DenseDeltas(
        {"norm.weight": torch.tensor([1.0, 1.0, 1.0]), "other.weight": torch.ones(2, 2)}
    )
    row = only(compare(a, b))
    assert (row.weight, row.overlap_in, row.overlap_out) == ("norm.weight", None, None)
    assert row.cosine == pytest.approx(-1 / math.sqrt(15))
    assert row.conflict == pytest.approx(0.5)


def test_a_delta_of_zeros_shares_nothing() -> None:
    row = only(
        compare(
            DenseDeltas({"w.weight": torch.zeros(3, 4)}),
            DenseDeltas({"w.weight": torch.ones(3, 4)}),
        )
    )
    assert (row.cosine, row.conflict, row.conflict_mass, row.overlap_in, row.overlap_out) == (
        0,
        0,
        0,
        0,
        0,
    )


def test_comparing_changes_nothing() -> None:
    x, y = torch.ones(3, 4), torch.eye(3, 4)
    compare(DenseDeltas({"w.weight": x}), DenseDeltas({"w.weight": y}))
    assert_close(x, torch.ones(3, 4))
    assert_close(y, torch.eye(3, 4))


def test_cosines_of_many_are_those_of_their_dense_deltas() -> None:
    other = "model.layers.1.mlp.up_proj"
    experts = [
        Expert("both", {MODULE: made(3, 0), other: made(2, 1, (7, 5))}),
        Expert("one", {MODULE: made(2, 2)}),
        Expert("elsewhere", {other: made(1, 3, (7, 5))}),
    ]
    shapes = {MODULE: (12, 10), other: (7, 5)}

    def dense(expert: Expert) -> torch.Tensor:
        parts = [
            expert.factors[module].dense() if module in expert.factors else torch.zeros(shape)
            for module, shape in shapes.items()
        ]
        return torch.cat([part.flatten() for part in parts])

    rows = torch.nn.functional.normalize(
        torch.stack([dense(expert) for expert in experts]).double()
    )
    assert_close(measure_cosines(experts), rows @ rows.t(), atol=1e-6, rtol=0)


def test_cosines_of_an_expert_with_itself_undone_and_with_nothing() -> None:
    a, b = made(2, 0)
    experts = [
        Expert("it", {MODULE: LowRank(a, b)}),
        Expert("undone", {MODULE: LowRank(a, -2 * b)}),
        Expert("nothing", {MODULE: LowRank(a, 0 * b)}),
    ]
    wanted = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]], dtype=torch.float64)
    assert_close(measure_cosines(experts), wanted)
