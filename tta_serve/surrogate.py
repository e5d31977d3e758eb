"""Quadratic models of what a merge is worth for each task, and the search of their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from router.pareto import losses, tchebycheff

TOTAL = 1.5  # the largest sum of a sampled merge's coefficients: beyond it merges of several experts fall apart
_CANDIDATES = 20_000
_ROUNDS = 12
_NEAR = 512


@dataclass(frozen=True)
class Quadratic:
    """m_t(c) = sum_(i <= j) q_tij c_i c_j + sum_i b_ti c_i + a_t. weights: [tasks, monomials]"""

    weights: Tensor

    def __call__(self, coefficients: Tensor) -> Tensor:
        """coefficients: [..., experts]. Returns [..., tasks]"""
        return monomials(coefficients) @ self.weights.T


def monomials(c: Tensor) -> Tensor:
    """1, every c_i and every c_i c_j with i <= j. c: [..., K]. Returns [..., (K + 1)(K + 2) / 2]"""
    with_one = torch.cat([torch.ones_like(c[..., :1]), c], -1)
    i, j = torch.triu_indices(with_one.shape[-1], with_one.shape[-1])
    return with_one[..., i] * with_one[..., j]


def fit(c: Tensor, values: Tensor) -> Quadratic:
    """Least squares, float64. c: [samples, experts]   values: [samples, tasks]"""
    return Quadratic(torch.linalg.lstsq(monomials(c), values, driver="gelsd").solution.T)


def r2(model: Quadratic, c: Tensor, values: Tensor) -> Tensor:
    """1 - residual / total sum of squares, on samples that the model was not fitted to. Returns [tasks]"""
    residual = (values - model(c)).square().sum(0)
    return 1 - residual / (values - values.mean(0)).square().sum(0).clamp_min(1e-12)


def merges(count: int, experts: int, generator: torch.Generator) -> Tensor:
    """Random merges: proportions uniform on the simplex, times a sum uniform in [0, 1.5]. Returns [count, experts], float64"""
    parts = torch.empty(count, experts, dtype=torch.float64).exponential_(generator=generator)
    total = TOTAL * torch.rand(count, 1, dtype=torch.float64, generator=generator)
    return parts / parts.sum(1, keepdim=True) * total


def directions(tasks: int, count: int) -> Tensor:
    """Preferences spread over the simplex: corners, centre, then always the lattice's point farthest from all of those.

    count: more than tasks. Returns [count, tasks], each of sum 1.
    """
    chosen = [*torch.eye(tasks, dtype=torch.float64), torch.full((tasks,), 1 / tasks, dtype=torch.float64)]
    lattice, depth = _lattice(tasks, 1), 1
    while len(lattice) < count:
        depth += 1
        lattice = _lattice(tasks, depth)
    while len(chosen) < count:
        chosen.append(lattice[torch.cdist(lattice, torch.stack(chosen)).amin(1).argmax()])
    return torch.stack(chosen[:count])


def search(model: Quadratic, preferences: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """For each preference the merge with the least augmented Tchebycheff loss: the best of many at random and of `known`
    ones, then of ever nearer neighbours of the best so far.

    Losses are in units of the way from a task's best value to its value where it suffers most from another task's best.

    preferences: [points, tasks]   known: [merges, experts]. Returns [points, experts], coefficients in [0, 1.5].
    """
    pool = torch.cat([known, merges(_CANDIDATES, known.shape[1], generator)])
    values = model(pool)
    best, worst = values.amax(0), values[values.argmax(0)].amin(0)

    def loss(c: Tensor, preference: Tensor) -> Tensor:
        return tchebycheff(losses(model(c), best, worst), preference)

    found = []
    for preference in preferences:
        c, reach = pool[loss(pool, preference).argmin()], 0.2
        for _ in range(_ROUNDS):
            steps = torch.randn(_NEAR, len(c), dtype=torch.float64, generator=generator) * reach
            near = torch.cat([c[None], (c + steps).clamp(0, TOTAL)])
            near = near * (TOTAL / near.sum(1, keepdim=True)).clamp_max(1)
            c, reach = near[loss(near, preference).argmin()], reach * 0.7
        found.append(c)
    return torch.stack(found)


def undominated(values: Tensor) -> list[int]:
    """The points that no other equals for every task and beats for one; of equal ones the first. values: [points, tasks]"""
    kept = []
    for i, value in enumerate(values):
        as_good = (values >= value).all(1)
        better = as_good & (values > value).any(1)
        if not bool(better.any()) and not bool(as_good[:i].any()):
            kept.append(i)
    return kept


def _lattice(tasks: int, depth: int) -> Tensor:
    """All points of the simplex whose coordinates are multiples of 1 / depth."""
    picks: Sequence[tuple[int, ...]] = list(combinations_with_replacement(range(tasks), depth))
    return torch.stack([torch.bincount(torch.tensor(pick), minlength=tasks).double() / depth for pick in picks])
