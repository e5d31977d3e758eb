"""Decisions inside a forward pass: a policy as small linear heads, and what they decide, in tensors of fixed shapes.

    z = (f - mean) / std, divided by its norm if `unit`        s = W z + b        f: [d], the mean state of a user's turn

The first K scores are the experts', the last is the floor. The base answers if max_k s_k (with `odds` log sum_k exp(s_k)) is
below the floor. Otherwise shares are softmax(s / T) over the experts, of which the `top` best above `minimum` count, divided
by their sum, and put on the grid as `router.blend` does it.

Nearest centroids (`router.retrieval`) are such a head, and so is a linear gate (`router.gate`). All shapes are fixed and
nothing waits for a value, so that a worker may decide in the middle of a pass, and a CUDA graph may replay it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from adapters.mix import MixRules


@dataclass(frozen=True)
class Head:
    """names: of the experts, in the order in which equal scores are taken   mean, std: [d]   weight: [K + 1, d]
    bias: [K + 1]   only: the experts whose being best makes it decide, all if empty
    """

    names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    unit: bool = False
    odds: bool = False
    temperature: float = 1.0
    top: int = 1
    minimum: float = 0.0
    only: frozenset[str] = frozenset()


class Heads(NamedTuple):
    """Heads, one a row, and the rules of mixes: grid, and how many experts at most. Experts that are missing score -inf."""

    mean: Tensor  # [H, d], float32 as all that is not said to be otherwise
    std: Tensor  # [H, d]
    weight: Tensor  # [H, K + 1, d]
    bias: Tensor  # [H, K + 1]
    unit: Tensor  # [H], bool
    odds: Tensor  # [H], bool
    temperature: Tensor  # [H]
    top: Tensor  # [H], int64
    minimum: Tensor  # [H]
    may: Tensor  # [H, K], bool, false for an expert whose being best leaves the decision to the next head
    grid: Tensor  # [H], float64
    most: Tensor  # [H], int64

    def at(self, rows: Tensor) -> "Heads":
        """Some of the heads. rows: [R]"""
        return Heads(*(values.index_select(0, rows) for values in self))


class Choice(NamedTuple):
    """scores: [R, K + 1], the floor last   units: [R, K], int64, coefficients in units of the grid
    head: [R], int64, which of several heads made it
    """

    scores: Tensor
    units: Tensor
    head: Tensor


def row(head: Head, experts: Collection[str], capacity: int, rules: MixRules) -> Heads:
    """One head as a row, filled up to `capacity` experts. experts: those that are there; the head chooses no others"""
    there, missing = torch.tensor([name in experts for name in head.names], dtype=torch.bool), capacity - len(head.names)
    scores, floor = head.bias[:-1].where(there, -torch.inf), head.bias[-1:]
    only = head.only or set(head.names)
    values = (
        head.mean,
        head.std,
        torch.cat([pad(head.weight[:-1], (0, 0, 0, missing)), head.weight[-1:]]),
        torch.cat([pad(scores, (0, missing), value=-torch.inf), floor]),
        torch.tensor(head.unit),
        torch.tensor(head.odds),
        torch.tensor(head.temperature, dtype=torch.float32),
        torch.tensor(head.top),
        torch.tensor(head.minimum, dtype=torch.float32),
        pad(torch.tensor([name in only for name in head.names], dtype=torch.bool), (0, missing)),
        torch.tensor(rules.grid, dtype=torch.float64),
        torch.tensor(rules.max_experts),
    )
    return Heads(*(value.unsqueeze(0) for value in values))


def nothing(width: int, capacity: int) -> Heads:
    """The row of a head that leaves all to the next."""
    zeros = torch.zeros(1, width, dtype=torch.float32)
    head = Head((), zeros[0], zeros[0] + 1, zeros, zeros[:, 0])
    return row(head, (), capacity, MixRules(frozenset(), 0))


def choose(heads: Sequence[Heads], features: Tensor) -> Choice:
    """What is decided for each row of features, [R, d] float32, by the first of its heads that may decide, else by the last.

    heads: each with one row for each row of features
    """
    *before, last = (_one(part, features) for part in heads)
    scores, units, _ = last
    which = torch.full_like(units[:, 0], len(before))
    for number, (other_scores, other_units, may) in reversed([*enumerate(before)]):
        scores, units = other_scores.where(may[:, None], scores), other_units.where(may[:, None], units)
        which = torch.where(may, number, which)
    return Choice(scores, units, which)


def _one(heads: Heads, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, units, and whether the head may decide."""
    z = (features - heads.mean) / heads.std
    z = normalize(z, dim=1).where(heads.unit[:, None], z)
    scores = torch.einsum("rkd,rd->rk", heads.weight, z) + heads.bias
    experts, floor = scores[:, :-1], scores[:, -1]
    above = experts.logsumexp(1).where(heads.odds, experts.amax(1)) >= floor
    may = above & heads.may.gather(1, experts.argmax(1, keepdim=True))[:, 0]
    units = _units(heads, (experts / heads.temperature[:, None]).softmax(1))
    return scores, units * above[:, None], may


def _units(heads: Heads, shares: Tensor) -> Tensor:
    """The shares that count, each rounded to the grid; the largest takes what the others leave. [R, K]"""
    order = shares.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(shares.shape[1], device=shares.device)
    ranked = shares.gather(1, order).double()
    ranked = ranked.where((rank < heads.top[:, None]) & (ranked > heads.minimum[:, None]), 0.0)
    ranked = ranked / ranked.sum(1, keepdim=True)
    units = (ranked / heads.grid[:, None]).round().where(rank < heads.most[:, None], 0.0)
    units[:, 0] = ((1 / heads.grid).round() - units[:, 1:].sum(1)).clamp_min(0)
    return torch.zeros_like(units).scatter(1, order, units).nan_to_num().long()
