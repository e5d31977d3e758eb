"""In-layer gating: how much of each candidate expert a token uses in one weight.

The bank's own product tells. Of canonical factors, b_k a_k = (U S) V^T, it is h_k = a_k x, which
says how much of x lies in what expert k reads:

    arrow      s_k = |h_k1|                       along the top right singular vector
    spectr     s_k = ||h_k||                      within all that the expert reads
    trained    s_k = ||h_k * sqrt(g_k)|| + d_k    by gates of this weight, `layer_gates`

    y = W x + sum_k c_k b_k h_k,    c = softmax(s / T) over the `top` best candidates, else 0

Arrow: Ostapenko et al. 2024, arXiv 2405.11157. SpectR: Fleshman and Van Durme 2025, arXiv
2504.03454; it gives equal shares, which is T = infinity. SMILE (Tang et al. 2024, arXiv 2408.10174)
is its score with T = 1. All scores are norms of weighted directions of h_k, so that tokens of
different gatings are one computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Score = Literal["arrow", "spectr", "trained"]
NUMBERS = 4
"""How many numbers `Gating.numbers` has."""


@dataclass(frozen=True)
class Gating:
    """How the tokens of a request choose among the candidate experts in each weight."""

    score: Score
    """Which s."""
    top: int
    """How many candidates share a token."""
    temperature: float | None = None
    """T; None for equal shares."""

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """How many directions of h_k count, top, T, and whether the gates are trained."""
        directions = 1.0 if self.score == "arrow" else inf
        return directions, float(self.top), self.temperature or inf, float(self.score == "trained")


class Blocks(NamedTuple):
    """Which rows of a bank are which expert's in which weight.

    Each pair of them is a cell; the cells [weights, experts] are numbered in one line.
    """

    cell: Tensor
    """[rows], the number of each row's cell."""
    of: Tensor
    """[rows, cells], 1 where a row belongs to a cell, else 0."""
    direction: Tensor
    """[rows], each row's number within its cell."""
    weights: int
    """How many weights the layer has."""
    experts: int
    """How many experts have rows."""


class BankGates(NamedTuple):
    """The trained gates of a bank."""

    g: Tensor
    """[rows], the weight of each direction."""
    d: Tensor
    """[cells], what is added to each score."""


class Sharing(NamedTuple):
    """What is known of some tokens and a bank before h is."""

    blocks: Blocks
    """Those of the bank."""
    coefficients: Tensor
    """[tokens, rows], what a token that is not gated uses."""
    gated: Tensor
    """[tokens, 1], bool, whether a token is gated."""
    trained: Tensor
    """[tokens, 1], bool, whether it is gated by trained gates."""
    counts: Tensor
    """[tokens, rows], bool, whether a row counts in s."""
    barred: Tensor
    """[tokens, cells], 0 for candidates, else -inf."""
    cut: Tensor
    """[tokens, weights, experts], bool, which of the scores in falling order get no share."""
    sharpness: Tensor
    """[tokens, 1, 1], 1 / T."""


def build_blocks(rows: Sequence[int], expert: Sequence[int], device: torch.device) -> Blocks:
    """Return the blocks of a bank.

    Args:
        rows: How many rows each weight has.
        expert: [rows], the index of each row's expert.
        device: Where the bank is.
    """
    known, owner = torch.tensor(expert, device=device).unique(return_inverse=True)
    weight = torch.arange(len(rows), device=device).repeat_interleave(
        torch.tensor(rows, device=device)
    )
    cell = weight * len(known) + owner
    of = torch.nn.functional.one_hot(cell, len(rows) * len(known)).float()
    return Blocks(cell, of, (of.cumsum(0) * of).sum(1) - 1, len(rows), len(known))


def prepare_sharing(coefficients: Tensor, gatings: Tensor, blocks: Blocks) -> Sharing:
    """Return what of the shares can be known before h is.

    A token's candidates are the experts whose coefficients are not zero.

    Args:
        coefficients: [tokens, rows].
        gatings: [tokens, NUMBERS], `Gating.numbers`; zeros for tokens that are not gated.
        blocks: Those of the bank.
    """
    directions, top, temperature, trained = gatings.unsqueeze(1).unbind(2)
    candidates = (coefficients != 0).float() @ blocks.of > 0
    shared = (
        candidates.unflatten(1, (blocks.weights, blocks.experts))
        .sum(2, keepdim=True)
        .minimum(top.unsqueeze(2))
    )
    cut = torch.arange(blocks.experts, device=shared.device) >= shared
    barred = torch.zeros_like(candidates, dtype=torch.float32).masked_fill_(~candidates, -inf)
    counts = blocks.direction < directions
    sharpness = 1 / temperature.unsqueeze(2)
    return Sharing(
        blocks, coefficients, directions > 0, trained > 0, counts, barred, cut, sharpness
    )


def compute_shares(h: Tensor, sharing: Sharing, gates: BankGates | None = None) -> Tensor:
    """Return the coefficients of each token's rows: shares if it is gated, else its own.

    All shapes are fixed and nothing waits for a value, so that a CUDA graph may replay it.

    Args:
        h: [tokens, rows], A x.
        sharing: What is known of the tokens and the bank.
        gates: Those of this bank; without them, g = 1 and d = 0.

    Returns [tokens, rows].
    """
    blocks = sharing.blocks
    cut = sharing.cut

    # The score of each cell, -inf where its expert is no candidate.
    weights = gates.g.where(sharing.trained, sharing.counts) if gates else sharing.counts
    scores = ((h.float().square() * weights) @ blocks.of).sqrt_().add_(sharing.barred)
    if gates:
        scores.add_(gates.d * sharing.trained)

    # Shares among the best scores of each weight, then back from falling order to cells and rows.
    best, order = scores.view(-1, blocks.weights, blocks.experts).sort(
        dim=2, descending=True, stable=True
    )
    ordered = (best * sharing.sharpness).masked_fill_(cut, -inf).softmax(2).masked_fill_(cut, 0)
    by_cell = torch.empty_like(ordered).scatter_(2, order, ordered).flatten(1)
    return by_cell.index_select(1, blocks.cell).where(sharing.gated, sharing.coefficients)
