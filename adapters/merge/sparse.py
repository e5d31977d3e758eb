"""Merges that first leave out most of each expert's delta: the small entries, random ones, or those that others contradict.

Sizes are compared within one weight, not over the model as in some of the papers, so that memory holds one weight of each
expert.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adapters.merge.method import Count, Density, Method, NotNegative, Positive, Share, Value

_PIECE = 1 << 15  # entries of each expert merged at a time, so that one step finds in the cache what the last one wrote
_TINY = torch.finfo(torch.float32).tiny


def ties(deltas: Tensor, weights: Tensor, *, density: Density = 0.2, normalize: bool = True, scale: Positive = 1.0) -> Tensor:
    """TIES: trim, elect a sign, and take the mean of those that agree with it.

        t_k = delta_k where it is among its int(density n) largest of n entries by magnitude, else 0
        s = sign(sum_k w_k t_k)   A = {k: sign(w_k t_k) = s}   delta = scale * sum_A w_k t_k / sum_A |w_k|

    deltas: [experts, *shape]   weights: [experts]. Returns [*shape]. One expert comes out trimmed.
    normalize: whether to divide; without it the sum of those that agree, as some tools have it
    arXiv 2306.01708: density 0.2, scale 1 (searched from 0.8 to 2.5 where there is validation data). Entries equal to the last
    one kept are kept too, as in its code, and where the elected sum is exactly 0 so is the delta.
    """
    least = _bounds(deltas, [_kept(deltas, density)])

    def merge(piece: Tensor) -> Tensor:
        return _elected(piece.mul_(piece.abs().ge_(least)), weights, normalize)

    return _by_pieces(deltas, merge).mul_(scale)


def dare_linear(delta: Tensor, *, density: Density = 0.1, generator: torch.Generator) -> Tensor:
    """DARE, then task arithmetic: sum_k w_k m_k delta_k / density, with m_k = 1 with probability `density`, else 0.

    delta: [*shape], of one expert; overwritten. Returns m delta / density; its expectation is the expert with nothing dropped.
    arXiv 2311.03099: drop 0.9, density 0.1. The rescaling to an equal L1 norm that some tools have instead is not the paper's.
    """
    delta = delta.contiguous()
    for piece in delta.view(-1).split(_PIECE):
        _dropped(piece, density, generator)
    return delta


def dare_ties(  # noqa: PLR0913 - one knob each
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.1,
    normalize: bool = True,
    scale: Positive = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """DARE, then the election of `ties`, with t_k = m_k delta_k / density, m_k = 1 with probability `density`, else 0.

    deltas: [experts, *shape]   weights: [experts]. Returns [*shape]; for one expert its expectation is that expert.
    arXiv 2311.03099: drop 0.9, density 0.1. To trim to 20 % as well, as `ties` does, would find no more than these left.
    """
    return _by_pieces(deltas, lambda piece: _elected(_dropped(piece, density, generator), weights, normalize)).mul_(scale)


def della(  # noqa: PLR0913 - one knob each
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.7,
    window: NotNegative = 0.14,
    normalize: bool = True,
    scale: Positive = 1.1,
    generator: torch.Generator,
) -> Tensor:
    """DELLA: keep an entry with a probability that grows with its rank in its row (MagPrune), then the election of `ties`.

        p = density - window / 2 + window r / (n - 1),   r = 0 ... n - 1 the rank of |delta_k| in its row of n entries
        t_k = m_k delta_k / p,   m_k = 1 with probability p, else 0

    deltas: [experts, ..., n]   weights: [experts]. Returns [..., n]; for one expert its expectation is that expert times
    `scale`. arXiv 2406.11617: drop 0.3, window 0.14, scale 1.1 in the example of its code. Half the window is what some tools
    call epsilon.
    """
    chances = torch.linspace(density - window / 2, density + window / 2, deltas.shape[-1])
    for delta in deltas:
        ranked = torch.from_numpy(np.argsort(delta.abs().numpy(), axis=-1))
        chance = torch.empty_like(delta).scatter_(-1, ranked, chances.expand_as(delta))
        delta.mul_(torch.rand(delta.shape, generator=generator).lt_(chance)).div_(chance)
    return _by_pieces(deltas, lambda piece: _elected(piece, weights, normalize)).mul_(scale)


def breadcrumbs(delta: Tensor, *, density: Density = 0.15, outliers: Share = 0.006) -> Tensor:
    """Model Breadcrumbs: sum_k w_k t_k, where t_k has neither the largest nor the smallest entries of delta_k.

    Of n entries the int(outliers n) largest by magnitude go, and of the rest the int(density n) largest stay.

    delta: [*shape], of one expert; overwritten. Returns its t.
    arXiv 2312.06795; density 0.15, outliers 0.006 and weights of 0.2 are where the search of its code starts, which masks by
    row: here, as in the paper, by weight. Without outliers it is pruning by magnitude.
    """
    gone = int(outliers * delta.numel())
    least, most = _bounds(delta[None], [gone + _kept(delta[None], density), gone + 1])[0]
    delta = delta.contiguous()
    for piece in delta.view(-1).split(_PIECE):
        size = piece.abs()
        piece.mul_((size >= least) & (size <= most))
    return delta


def pcb(deltas: Tensor, weights: Tensor, *, density: Density = 0.1) -> Tensor:
    """PCB: entries compete by how large they are in their expert and how well they agree with the sum of all.

        d_k = delta_k with its magnitudes clamped to all but the 0.01 % smallest and largest
        score_k = exp(K norm(|d_k|)^2) tanh(delta_k sum_j delta_j)   share_k = norm(score_k clamped to its `density` largest)
        delta = sum_k w_k share_k d_k / sum_k share_k     norm: from 0 at the smallest entry of the weight to 1 at the largest

    deltas: [experts, *shape]   weights: [experts], the paper's lambda; of weight 0 an expert still competes. Returns [*shape].
    arXiv 2410.02396: density 0.1 and lambda 1; with its evolutionary search 0.05 and lambda from 1.2. The paper compares
    entries over the whole model, here within a weight.
    """
    flat, total = deltas.flatten(1), deltas.sum(0).flatten()
    top, shares = torch.zeros_like(total), torch.zeros_like(total)
    count, size = flat.shape
    for delta, weight in zip(flat, weights.tolist(), strict=True):
        ordered = _sorted(delta.abs())
        low, high = float(ordered[int(size * 1e-4)]), float(ordered[max(int(size * (1 - 1e-4) - 1), int(size * 1e-4))])
        magnitude = delta.abs().clamp_(low, high)
        # The factor e^(-K / 2), which the second norm takes out, keeps the first of many experts from overflowing.
        score = _unit(magnitude, low, high).square_().sub_(0.5).mul_(count).exp_().mul_((delta * total).tanh_())
        ordered = _sorted(score)
        share = _unit(score, float(ordered[min(int(size * (1 - density)), size - 1)]), float(ordered[-1]))
        shares.add_(share)
        top.addcmul_(magnitude.copysign_(delta).mul_(delta != 0), share, value=weight)
    return top.div_(shares.clamp_min_(1e-12)).view(deltas.shape[1:])


def consensus(deltas: Tensor, weights: Tensor, *, threshold: NotNegative = 0.5, agree: Count = 2) -> Tensor:
    """Consensus task arithmetic by TALL masks: only entries that matter to at least `agree` experts stay in the sum.

        m_k = |delta_k| > threshold |sum_j delta_j - delta_k|   delta = (sum_k w_k delta_k) where sum_k m_k >= agree, else 0

    deltas: [experts, *shape]   weights: [experts], 0.3 by default as in task arithmetic; they do not move the masks.
    Returns [*shape].
    arXiv 2405.07813 searches the threshold from 0.2 to 0.6 for each task; 0.5 is that of MergeBench (arXiv 2505.10833). agree
    1 removes what matters to none, 2, the default, also what matters to one.
    """

    def merge(piece: Tensor) -> Tensor:
        active = (piece.sum(0) - piece).abs_().mul_(threshold).lt_(piece.abs()).sum(0)
        return torch.mv(piece.t(), weights).mul_(active >= agree)

    return _by_pieces(deltas, merge)


def localize_and_stitch(deltas: Tensor, weights: Tensor, *, density: Density = 0.05) -> Tensor:
    """Localize-and-Stitch without data: the largest entries of each expert, averaged where they overlap.

        m_k = 1 where delta_k is among its int(density n) largest of n entries by magnitude and not 0, else 0
        delta = sum_k w_k m_k delta_k / sum_k w_k m_k

    deltas: [experts, *shape]   weights: [experts]. Returns [*shape]. One expert comes out trimmed.
    arXiv 2408.13656; 0.05 is its code's for language models (0.1 for vision). The masks that it learns on data are not here.
    """
    least = _bounds(deltas, [_kept(deltas, density)])

    def merge(piece: Tensor) -> Tensor:
        mask = piece.mul_(piece.abs().ge_(least)).ne(0).float()
        return torch.mv(piece.t(), weights).div_(torch.mv(mask.t(), weights).clamp_min_(_TINY))

    return _by_pieces(deltas, merge)


def cabs(deltas: Tensor, weights: Tensor, *, keep: Count = 64, of: Count = 256) -> Tensor:
    """CABS: delta = sum_k w_k t_k, t_k being the `keep` largest of each `of` successive entries that no expert before k took.

    deltas: [experts, *shape]   weights: [experts]. Returns [*shape]. No two experts share an entry; their order matters, and
    `keep` times the experts may not exceed `of`. Of a rest shorter than `of` the same share is kept, rounded down.
    arXiv 2503.01874 and its code: 64 of 256.
    """
    flat = deltas.reshape(len(deltas), -1)
    result, free = torch.zeros_like(flat[0]), torch.ones_like(flat[0])
    rest = len(result) % of
    for delta, weight in zip(flat, weights.tolist(), strict=True):
        size = delta.abs() * free
        taken = torch.zeros_like(size)
        for start, end, group in ((0, len(size) - rest, of), (len(size) - rest, len(size), rest)):
            groups, into = (part[start:end].view(-1, group) if group else part[:0] for part in (size, taken))
            into.scatter_(-1, groups.topk(group * keep // of).indices, 1)
        taken.mul_(size > 0)
        free.sub_(taken)
        result.addcmul_(taken, delta, value=weight)
    return result.view(deltas.shape[1:])


def _by_pieces(deltas: Tensor, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """The merge, entry by entry: [experts, some] at a time, which may be overwritten. Returns [*shape]."""
    result = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    for into, piece in zip(result.view(-1).split(_PIECE), deltas.reshape(len(deltas), -1).split(_PIECE, 1), strict=True):
        into.copy_(merge(piece))
    return result


def _elected(piece: Tensor, weights: Tensor, normalize: bool) -> Tensor:
    """Of [experts, n] the weighted sum, or mean, of the entries that have the sign of the weighted sum. Overwrites them."""
    sign = piece.mul_(weights[:, None]).sum(0).sign_()
    agreeing = piece.mul_(sign).relu_()
    total = agreeing.sum(0)
    if normalize:
        total.div_(torch.mv(agreeing.sign().t(), weights.abs()).clamp_min_(_TINY))
    return total.mul_(sign)


def _dropped(piece: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry, with probability `density`, divided by it, else 0; overwrites them."""
    return piece.mul_(torch.rand(piece.shape, generator=generator).lt_(density)).div_(density)


def _kept(deltas: Tensor, density: float) -> int:
    return max(1, int(density * deltas[0].numel()))


def _bounds(deltas: Tensor, ranks: list[int]) -> Tensor:
    """Which magnitudes have these ranks in each expert, 1 the largest. Returns [experts, ranks]."""
    return torch.stack([_sorted(delta.abs())[[-rank for rank in ranks]] for delta in deltas])


def _sorted(values: Tensor) -> Tensor:
    """All entries, rising."""
    # NumPy's sort is vectorised: some five times as fast as `kthvalue`, and not slowed by equal values as selecting is.
    return torch.from_numpy(np.sort(values.numpy(), axis=None))


def _unit(values: Tensor, low: float, high: float) -> Tensor:
    """0 at `low` and below, 1 at `high` and above, and 0 everywhere where these are one."""
    return values.clamp(low, high).sub_(low).div_(max(high - low, _TINY))


def _check_breadcrumbs(experts: int, density: float, outliers: float) -> str | None:
    return None if density + outliers <= 1 else f"density {density} and outliers {outliers} are together more than 1"


def _check_della(experts: int, density: float, window: float, **_: Value) -> str | None:
    fits = window / 2 < density <= 1 - window / 2
    return None if fits else f"probabilities must be above 0 and at most 1; density {density} and window {window} go beyond"


def _check_cabs(experts: int, keep: int, of: int) -> str | None:
    return None if keep * experts <= of else f"{experts} experts cannot keep {keep} of every {of} entries without sharing any"


ROWS = (
    Method("ties", ties, "TIES, arXiv 2306.01708", weights="sum"),
    Method("dare_linear", dare_linear, "DARE, arXiv 2311.03099", weights="sum"),
    Method("dare_ties", dare_ties, "DARE, arXiv 2311.03099", weights="sum", blocks=True),
    Method("della", della, "DELLA, arXiv 2406.11617", weights="sum", check=_check_della),
    Method(
        "breadcrumbs", breadcrumbs, "Model Breadcrumbs, arXiv 2312.06795", weights="sum", weight=0.2, check=_check_breadcrumbs
    ),
    Method("pcb", pcb, "PCB, arXiv 2410.02396", weights="sum"),
    Method("consensus", consensus, "TALL masks, arXiv 2405.07813", weights="sum", weight=0.3, at_least=2, blocks=True),
    Method("localize_and_stitch", localize_and_stitch, "Localize-and-Stitch, arXiv 2408.13656"),
    Method("cabs", cabs, "CABS, arXiv 2503.01874", weights="sum", check=_check_cabs),
)
