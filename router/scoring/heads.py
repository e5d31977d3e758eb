"""Decisions inside a forward pass: policies as small linear heads, in tensors of fixed shapes.

A head reads f, [d], the mean state of a user's turn:

    z = (f - mean) / std, divided by its norm if `unit`
    s = W z + b

The first K scores are the experts', the last is the floor. The base answers if max_k s_k (with
`odds`, log sum_k exp(s_k)) is below the floor. Otherwise shares are softmax(s / T) over the
experts, of which the `top` best above `minimum` count, divided by their sum, and put on the grid as
`router.scoring.blend` does it. A head may also say whether a request wants several experts, one
after the other: the logit of that is v z + c, which changes nothing of the mix.

Nearest centroids (`router.policies.retrieval`) are such a head, and so is a linear gate
(`router.policies.gate`). All shapes are fixed and nothing waits for a value, so that a worker may
decide in the middle of a pass, and a CUDA graph may replay it.
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
    """One linear head over some experts, with the notation of this file."""

    names: tuple[str, ...]
    """The K experts; equal scores are taken in this order."""
    mean: Tensor
    """[d]."""
    std: Tensor
    """[d]."""
    weight: Tensor
    """[K + 1, d], W; the floor is the last row."""
    bias: Tensor
    """[K + 1], b."""
    unit: bool = False
    """Whether z is divided by its norm."""
    odds: bool = False
    """Whether the experts' scores are added up, as odds, before they compare with the floor."""
    temperature: float = 1.0
    """T of the softmax over scores."""
    top: int = 1
    """How many experts a mix has at most."""
    minimum: float = 0.0
    """Shares must be above it to count."""
    only: frozenset[str] = frozenset()
    """The head decides only if one of these experts is best; empty stands for all."""
    beside: str | None = None
    """An expert that is on, with coefficient 1, beside those that the head chooses."""
    alone: bool = False
    """Whether that one is also on where the head chooses none."""
    keep: float = 0.0
    """By how much another choice must lead before a conversation gets another mix."""
    in_shares: bool = False
    """Whether leads are differences of softmax(s / T), the floor included, and not of scores."""
    several: Tensor | None = None
    """[d + 1], v and, last, c; without them no request wants several experts."""


class Heads(NamedTuple):
    """Several heads, one a row, and the rules of mixes, as tensors.

    Experts that are missing score -inf.
    """

    mean: Tensor
    """[H, d], float32, as are all that do not say otherwise."""
    std: Tensor
    """[H, d]."""
    weight: Tensor
    """[H, K + 1, d]."""
    bias: Tensor
    """[H, K + 1]."""
    unit: Tensor
    """[H], bool."""
    odds: Tensor
    """[H], bool."""
    temperature: Tensor
    """[H]."""
    top: Tensor
    """[H], int64."""
    minimum: Tensor
    """[H]."""
    may: Tensor
    """[H, K], bool; where the best expert has false, the next head decides."""
    grid: Tensor
    """[H], float64, the step between coefficients."""
    most: Tensor
    """[H], int64, how many experts a mix has at most."""
    keep: Tensor
    """[H]."""
    in_shares: Tensor
    """[H], bool."""
    several: Tensor
    """[H, d + 1]."""

    def take(self, rows: Tensor) -> "Heads":
        """Return some of the heads.

        Args:
            rows: [R], which.
        """
        return Heads(*(values.index_select(0, rows) for values in self))


class HeadChoice(NamedTuple):
    """What heads decide for R rows of features."""

    scores: Tensor
    """[R, K + 1], the floor last."""
    units: Tensor
    """[R, K], int64, coefficients in units of the grid."""
    head: Tensor
    """[R], int64, which of several heads decided."""
    several: Tensor
    """[R], the logit that the request wants several experts."""


def make_row(head: Head, experts: Collection[str], capacity: int, rules: MixRules) -> Heads:
    """Return one head as a row, filled up to `capacity` experts.

    Args:
        head: The head.
        experts: Those that are there; the head chooses no others.
        capacity: K of the row.
        rules: The grid, and how many experts a mix may have.
    """
    there = torch.tensor([name in experts for name in head.names], dtype=torch.bool)
    missing = capacity - len(head.names)
    scores = head.bias[:-1].where(there, -torch.inf)
    floor = head.bias[-1:]
    only = head.only or set(head.names)
    never = pad(torch.zeros_like(head.mean), (0, 1), value=-torch.inf)
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
        torch.tensor(head.keep, dtype=torch.float32),
        torch.tensor(head.in_shares),
        never if head.several is None else head.several,
    )
    return Heads(*(value.unsqueeze(0) for value in values))


def make_empty_row(width: int, capacity: int) -> Heads:
    """Return the row of a head that leaves all decisions to the next."""
    zeros = torch.zeros(1, width, dtype=torch.float32)
    head = Head((), zeros[0], zeros[0] + 1, zeros, zeros[:, 0])
    return make_row(head, (), capacity, MixRules(frozenset(), 0))


def choose(heads: Sequence[Heads], features: Tensor) -> HeadChoice:
    """Decide for each row of features by the first of its heads that may, else by the last.

    Args:
        heads: In their order, each with one row for each row of features.
        features: [R, d], float32.
    """
    *before, last = (_one(part, features) for part in heads)
    scores, units, several, _ = last
    which = torch.full_like(units[:, 0], len(before))
    for number, (other_scores, other_units, other_several, may) in reversed([*enumerate(before)]):
        scores = other_scores.where(may[:, None], scores)
        units = other_units.where(may[:, None], units)
        several = other_several.where(may, several)
        which = torch.where(may, number, which)
    return HeadChoice(scores, units, which, several)


def should_move(heads: Heads, choice: HeadChoice, before: Tensor) -> Tensor:
    """Return whether conversations have changed their topics, [R] bool.

    As `router.policy.Policy.should_move`: another choice than before leads over that by more than
    the head's `keep`.

    Args:
        heads: Those that decided, one for each row.
        choice: What they decided.
        before: [R, K + 1], bool, which score is that of the choice before; the last is the base's.
    """
    # What leads are measured in.
    temperature = heads.temperature[:, None]
    shares = (choice.scores / temperature).softmax(1)
    scores = shares.where(heads.in_shares[:, None], choice.scores)

    # The choice now, and the one before.
    abstains = (choice.units == 0).all(1)
    best = scores[:, :-1].argmax(1).where(~abstains, scores.shape[1] - 1)
    lead = scores.gather(1, best[:, None])[:, 0] - scores.where(before, -torch.inf).amax(1)
    same = before.gather(1, best[:, None])[:, 0]
    return ~same & (lead > heads.keep)


def _one(heads: Heads, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores, units, the logit of several experts, and whether the head may decide."""
    z = (features - heads.mean) / heads.std
    z = normalize(z, dim=1).where(heads.unit[:, None], z)
    scores = torch.einsum("rkd,rd->rk", heads.weight, z) + heads.bias
    experts = scores[:, :-1]
    floor = scores[:, -1]
    above = experts.logsumexp(1).where(heads.odds, experts.amax(1)) >= floor
    may = above & heads.may.gather(1, experts.argmax(1, keepdim=True))[:, 0]
    units = _units(heads, (experts / heads.temperature[:, None]).softmax(1))
    several = (heads.several[:, :-1] * z).sum(1) + heads.several[:, -1]
    return scores, units * above[:, None], several, may


def _units(heads: Heads, shares: Tensor) -> Tensor:
    """Return the shares that count in units of the grid, [R, K].

    Each is rounded but for the largest, which takes what the others leave.
    """
    order = shares.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(shares.shape[1], device=shares.device)
    ranked = shares.gather(1, order).double()
    ranked = ranked.where((rank < heads.top[:, None]) & (ranked > heads.minimum[:, None]), 0.0)
    ranked = ranked / ranked.sum(1, keepdim=True)
    units = (ranked / heads.grid[:, None]).round().where(rank < heads.most[:, None], 0.0)
    units[:, 0] = ((1 / heads.grid).round() - units[:, 1:].sum(1)).clamp_min(0)
    return torch.zeros_like(units).scatter(1, order, units).nan_to_num().long()
