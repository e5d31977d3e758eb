"""Quadratic models of what a merge is worth for each task, and the search of their front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from router.policies.pareto import scale_losses, tchebycheff

TOTAL = 1.5
"""The largest sum of a merge's coefficients; beyond it merges of several experts fall apart."""

_CANDIDATES = 20_000
_ROUNDS = 12
_NEAR = 512


@dataclass(frozen=True)
class Quadratic:
    """A quadratic form for each task.

    m_t(c) = sum_(i <= j) q_tij c_i c_j + sum_i b_ti c_i + a_t
    """

    weights: Tensor
    """[tasks, monomials], a, b and q in the order of `monomials`."""

    def __call__(self, coefficients: Tensor) -> Tensor:
        """Return the value for each task, [..., tasks].

        Args:
            coefficients: [..., experts].
        """
        return monomials(coefficients) @ self.weights.T


def monomials(c: Tensor) -> Tensor:
    """Return 1, every c_i and every c_i c_j with i <= j, [..., (K + 1)(K + 2) / 2].

    Args:
        c: [..., K].
    """
    with_one = torch.cat([torch.ones_like(c[..., :1]), c], -1)
    i, j = torch.triu_indices(with_one.shape[-1], with_one.shape[-1])
    return with_one[..., i] * with_one[..., j]


def fit(c: Tensor, values: Tensor) -> Quadratic:
    """Fit a quadratic form by least squares, float64.

    Args:
        c: [samples, experts].
        values: [samples, tasks].
    """
    return Quadratic(torch.linalg.lstsq(monomials(c), values, driver="gelsd").solution.T)


def r2(model: Quadratic, c: Tensor, values: Tensor) -> Tensor:
    """Return 1 - residual / total sum of squares, [tasks].

    Args:
        model: The form.
        c: [samples, experts], samples that it was not fitted to.
        values: [samples, tasks].
    """
    residual = (values - model(c)).square().sum(0)
    return 1 - residual / (values - values.mean(0)).square().sum(0).clamp_min(1e-12)


def draw_merges(count: int, experts: int, generator: torch.Generator) -> Tensor:
    """Draw random merges, [count, experts], float64.

    Their proportions are uniform on the simplex, their sums uniform in [0, 1.5].
    """
    parts = torch.empty(count, experts, dtype=torch.float64).exponential_(generator=generator)
    total = TOTAL * torch.rand(count, 1, dtype=torch.float64, generator=generator)
    return parts / parts.sum(1, keepdim=True) * total


def spread_preferences(tasks: int, count: int) -> Tensor:
    """Return preferences spread over the simplex, [count, tasks], each of sum 1.

    These are the corners, the centre, then always the lattice's point farthest from all of those.

    Args:
        tasks: How many tasks there are.
        count: How many preferences to return, more than tasks.
    """
    chosen = [
        *torch.eye(tasks, dtype=torch.float64),
        torch.full((tasks,), 1 / tasks, dtype=torch.float64),
    ]
    depth = 1
    lattice = _lattice(tasks, depth)
    while len(lattice) < count:
        depth += 1
        lattice = _lattice(tasks, depth)
    while len(chosen) < count:
        chosen.append(lattice[torch.cdist(lattice, torch.stack(chosen)).amin(1).argmax()])
    return torch.stack(chosen[:count])


def search_front(
    model: Quadratic, preferences: Tensor, known: Tensor, generator: torch.Generator
) -> Tensor:
    """Find the merge with the least augmented Tchebycheff loss for each preference.

    It is the best of many at random and of `known` ones, then of ever nearer neighbours of the best
    so far. Losses are in units of the way from a task's best value to its value where it suffers
    most from another task's best.

    Args:
        model: What each merge is worth.
        preferences: [points, tasks].
        known: [merges, experts].
        generator: Of the draws.

    Returns:
        [points, experts], coefficients in [0, 1.5].
    """
    pool = torch.cat([known, draw_merges(_CANDIDATES, known.shape[1], generator)])
    values = model(pool)
    best = values.amax(0)
    worst = values[values.argmax(0)].amin(0)

    def loss(c: Tensor, preference: Tensor) -> Tensor:
        return tchebycheff(scale_losses(model(c), best, worst), preference)

    found = []
    for preference in preferences:
        c = pool[loss(pool, preference).argmin()]
        reach = 0.2
        for _ in range(_ROUNDS):
            steps = torch.randn(_NEAR, len(c), dtype=torch.float64, generator=generator) * reach
            near = torch.cat([c[None], (c + steps).clamp(0, TOTAL)])
            near = near * (TOTAL / near.sum(1, keepdim=True)).clamp_max(1)
            c = near[loss(near, preference).argmin()]
            reach *= 0.7
        found.append(c)
    return torch.stack(found)


def find_undominated(values: Tensor) -> list[int]:
    """Return the points that no other equals for every task and beats for one.

    Of equal ones it is the first.

    Args:
        values: [points, tasks].
    """
    kept = []
    for i, value in enumerate(values):
        as_good = (values >= value).all(1)
        better = as_good & (values > value).any(1)
        if not bool(better.any()) and not bool(as_good[:i].any()):
            kept.append(i)
    return kept


def _lattice(tasks: int, depth: int) -> Tensor:
    """Return all points of the simplex whose coordinates are multiples of 1 / depth."""
    picks: Sequence[tuple[int, ...]] = list(combinations_with_replacement(range(tasks), depth))
    return torch.stack(
        [torch.bincount(torch.tensor(pick), minlength=tasks).double() / depth for pick in picks]
    )
