"""In-layer gating: how much of each candidate expert a token uses in a weight, by the bank's own product.

Of canonical factors, b_k a_k = (U S) V^T, the product h_k = a_k x says how much of x lies in what expert k reads:

    s_k = |h_k1|      arrow     along the top right singular vector (Arrow, Ostapenko et al. 2024, arXiv 2405.11157)
    s_k = ||h_k||     spectr    within all that it reads (SpectR, Fleshman and Van Durme 2025, arXiv 2504.03454)
    s_k = ||h_k * sqrt(g_k)|| + d_k     trained    by gates of this weight, `adapters.layer_gates`

    y = W x + sum_k c_k b_k h_k        c = softmax(s / T) over the `top` best candidates, 0 for all others

SpectR gives equal shares, which is T = infinity; SMILE (Tang et al. 2024, arXiv 2408.10174) is its score with T = 1. All
scores are norms of weighted directions of h_k, so that tokens of different gatings are one computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Score = Literal["arrow", "spectr", "trained"]
NUMBERS = 4  # that a gating is made of


@dataclass(frozen=True)
class Gating:
    """score, top, temperature: s, how many candidates, and T; None for equal shares"""

    score: Score
    top: int
    temperature: float | None = None

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """Directions of h_k that count, top, T, and whether by trained gates."""
        directions = 1.0 if self.score == "arrow" else inf
        return directions, float(self.top), self.temperature or inf, float(self.score == "trained")


class Blocks(NamedTuple):
    """Which rows of a bank are an expert's in a weight: a cell for each of them, [weights, experts], in one line.

    cell: [rows]   of: [rows, cells], 1 where a row is a cell's, else 0   direction: [rows], a row's number within its cell
    weights, experts: how many
    """

    cell: Tensor
    of: Tensor
    direction: Tensor
    weights: int
    experts: int


class Trained(NamedTuple):
    """A bank's gates. g: [rows]   d: [cells]"""

    g: Tensor
    d: Tensor


class Sharing(NamedTuple):
    """What is known of tokens and a bank before h is.

    coefficients: [tokens, rows], of those that are not gated   gated, trained: [tokens, 1], bool
    counts: [tokens, rows], bool, whether a row counts in s   barred: [tokens, cells], 0 for candidates, else -inf
    cut: [tokens, weights, experts], bool, which of the scores in falling order have no share
    sharpness: [tokens, 1, 1], 1 / T
    """

    blocks: Blocks
    coefficients: Tensor
    gated: Tensor
    trained: Tensor
    counts: Tensor
    barred: Tensor
    cut: Tensor
    sharpness: Tensor


def blocks(rows: Sequence[int], expert: Sequence[int], device: torch.device) -> Blocks:
    """Of a bank with these `rows` of each weight, each of an `expert`."""
    known, owner = torch.tensor(expert, device=device).unique(return_inverse=True)
    weight = torch.arange(len(rows), device=device).repeat_interleave(torch.tensor(rows, device=device))
    cell = weight * len(known) + owner
    of = torch.nn.functional.one_hot(cell, len(rows) * len(known)).float()
    return Blocks(cell, of, (of.cumsum(0) * of).sum(1) - 1, len(rows), len(known))


def sharing(coefficients: Tensor, gatings: Tensor, blocks: Blocks) -> Sharing:
    """For tokens whose candidates are the experts with coefficients that are not zero.

    coefficients: [tokens, rows]   gatings: [tokens, NUMBERS], `Gating.numbers`, zeros for tokens that are not gated
    """
    directions, top, temperature, trained = gatings.unsqueeze(1).unbind(2)
    candidates = (coefficients != 0).float() @ blocks.of > 0
    shared = candidates.unflatten(1, (blocks.weights, blocks.experts)).sum(2, keepdim=True).minimum(top.unsqueeze(2))
    cut = torch.arange(blocks.experts, device=shared.device) >= shared
    barred = torch.zeros_like(candidates, dtype=torch.float32).masked_fill_(~candidates, -inf)
    counts = blocks.direction < directions
    sharpness = 1 / temperature.unsqueeze(2)
    return Sharing(blocks, coefficients, directions > 0, trained > 0, counts, barred, cut, sharpness)


def shares(h: Tensor, sharing: Sharing, gates: Trained | None = None) -> Tensor:
    """The coefficients of each token's rows: shares if it is gated, else its own. h: [tokens, rows]. Returns the same shape

    gates: of this bank; without, g = 1 and d = 0

    All shapes are fixed and nothing waits for a value, so that a CUDA graph may replay it.
    """
    blocks, cut = sharing.blocks, sharing.cut
    weights = gates.g.where(sharing.trained, sharing.counts) if gates else sharing.counts
    scores = ((h.float().square() * weights) @ blocks.of).sqrt_().add_(sharing.barred)
    if gates:
        scores.add_(gates.d * sharing.trained)
    best, order = scores.view(-1, blocks.weights, blocks.experts).sort(dim=2, descending=True, stable=True)
    ordered = (best * sharing.sharpness).masked_fill_(cut, -inf).softmax(2).masked_fill_(cut, 0)
    by_cell = torch.empty_like(ordered).scatter_(2, order, ordered).flatten(1)
    return by_cell.index_select(1, blocks.cell).where(sharing.gated, sharing.coefficients)
