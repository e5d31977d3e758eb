"""OrthoMerge against the published formula and on rotations whose mean is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapters.errors import MergeError
from adapters.merge.rotate import ortho_merge
from tests.factories.deltas import draw


def turned(base: Tensor, angle: float) -> Tensor:
    """Return the delta that turns the first two inputs of the base by an angle."""
    rotation = torch.eye(base.shape[1])
    rotation[:2, :2] = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    return base @ rotation - base


def test_is_the_published_formula() -> None:
    base, deltas, weights = draw(8, 5), 0.2 * draw(3, 8, 5, seed=1), [0.2, 0.3, 0.5]
    w, eye = base.double().numpy(), np.eye(5)
    skews, residuals = [], []
    for delta in deltas.double().numpy():
        u, _, vt = np.linalg.svd(w.T @ (w + delta))
        skews.append(np.linalg.inv(u @ vt + eye) @ (u @ vt - eye))
        residuals.append(w + delta - w @ u @ vt)
    direction = sum(s * q for s, q in zip(weights, skews, strict=True))
    size = sum(s * np.linalg.norm(q) for s, q in zip(weights, skews, strict=True))
    q = direction / np.linalg.norm(direction) * size
    expected = (
        w @ np.linalg.inv(eye - q) @ (eye + q)
        + sum(s * r for s, r in zip(weights, residuals, strict=True))
        - w
    )
    merged = ortho_merge(deltas, torch.tensor(weights), base=base)
    assert_close(merged, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (4, 7)])
def test_one_expert_alone_and_equal_ones_come_back(shape: tuple[int, int]) -> None:
    base, delta = draw(*shape), 0.3 * draw(*shape, seed=1)
    for experts in (1, 3):
        merged = ortho_merge(
            delta.expand(experts, *shape), torch.full((experts,), 1 / experts), base=base
        )
        assert_close(merged, delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (2, 4)])
def test_rotations_in_one_plane_have_the_mean_of_their_tangents(shape: tuple[int, int]) -> None:
    base = draw(*shape)
    base[:, 2:] = 0 if shape[0] < shape[1] else base[:, 2:]
    deltas = torch.stack([turned(base, 0.3), turned(base, 0.9)])
    angle = 2 * math.atan((math.tan(0.15) + math.tan(0.45)) / 2)
    assert_close(
        ortho_merge(deltas, torch.tensor([0.5, 0.5]), base=base),
        turned(base, angle),
        rtol=1e-4,
        atol=1e-5,
    )


def test_opposite_rotations_cancel() -> None:
    base = draw(6, 5)
    deltas = torch.stack([turned(base, 0.7), turned(base, -0.7)])
    assert_close(
        ortho_merge(deltas, torch.tensor([0.5, 0.5]), base=base),
        torch.zeros(6, 5),
        rtol=0,
        atol=1e-5,
    )


def test_a_merge_of_rotations_keeps_the_singular_values_of_the_base() -> None:
    base = draw(7, 5)
    skews = draw(3, 5, 5, seed=2)
    rotations = torch.linalg.matrix_exp(0.2 * (skews - skews.transpose(1, 2)))
    merged = ortho_merge(base @ rotations - base, torch.full((3,), 1 / 3), base=base)
    assert merged.norm() > 0.5
    assert_close(torch.linalg.svdvals(base + merged), torch.linalg.svdvals(base), rtol=1e-4, atol=0)


def test_what_the_base_leaves_open_does_not_turn() -> None:
    base = torch.cat([draw(3, 3), torch.zeros(3, 4)], 1)
    merged = ortho_merge(
        torch.stack([turned(base, 0.4), torch.zeros(3, 7)]), torch.tensor([0.5, 0.5]), base=base
    )
    assert_close(merged, turned(base, 2 * math.atan(math.tan(0.2) / 2)), rtol=1e-4, atol=1e-5)


def test_a_mirror_is_no_rotation_and_merged_as_a_residual() -> None:
    mirror = torch.diag(torch.tensor([-2.0, 0, 0]))
    deltas = torch.stack([mirror, turned(torch.eye(3), 0.4).roll((1, 1), (0, 1))])
    expected = mirror / 2 + ortho_merge(
        torch.stack([torch.zeros(3, 3), deltas[1]]), torch.tensor([0.5, 0.5]), base=torch.eye(3)
    )
    assert_close(
        ortho_merge(deltas, torch.tensor([0.5, 0.5]), base=torch.eye(3)),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_half_turn_is_refused() -> None:
    with pytest.raises(MergeError, match="half turn"):
        ortho_merge(-2 * torch.eye(2)[None], torch.ones(1), base=torch.eye(2))


def test_the_order_of_experts_does_not_matter() -> None:
    base, deltas, weights = draw(6, 5), 0.3 * draw(3, 6, 5, seed=1), torch.tensor([0.2, 0.3, 0.5])
    order = [2, 0, 1]
    merged = ortho_merge(deltas[order], weights[order], base=base)
    assert_close(merged, ortho_merge(deltas, weights, base=base), rtol=1e-4, atol=1e-5)
