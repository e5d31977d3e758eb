"""Merges that first leave out most of each expert's delta.

That is its small entries, random ones, or those that others contradict. Sizes are compared within
one weight, not over the model as in some of the papers, so that memory holds one weight of each
expert.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adapters.merge.method import Count, Density, Method, NotNegative, Positive, Share, Value

# Entries of each expert merged at a time, so that one step finds in the cache what the last wrote.
_PIECE = 1 << 15
_TINY = torch.finfo(torch.float32).tiny


def ties(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.2,
    normalize: bool = True,
    scale: Positive = 1.0,
) -> Tensor:
    """TIES: trim, elect a sign, and take the mean of those that agree with it.

        t_k = delta_k where it is among its int(density n) largest of n entries by magnitude, else 0
        s = sign(sum_k w_k t_k)    A = {k: sign(w_k t_k) = s}
        delta = scale * sum_A w_k t_k / sum_A |w_k|

    arXiv 2306.01708: density 0.2, scale 1 (searched from 0.8 to 2.5 where there is validation
    data). Entries equal to the last one kept are kept too, as in its code, and where the elected
    sum is exactly 0 so is the delta.

    Args:
        deltas: [experts, *shape].
        weights: [experts].
        density: The share of entries that stay.
        normalize: Whether to divide; without it the sum of those that agree, as some tools have it.
        scale: What the mean is multiplied with.

    Returns [*shape]. One expert comes out trimmed.
    """
    least = _bounds(deltas, [_kept(deltas, density)])

    def merge(piece: Tensor) -> Tensor:
        return _elected(piece.mul_(piece.abs().ge_(least)), weights, normalize)

    return _by_pieces(deltas, merge).mul_(scale)


def dare_linear(delta: Tensor, *, density: Density = 0.1, generator: torch.Generator) -> Tensor:
    """DARE, then task arithmetic: sum_k w_k m_k delta_k / density.

    m_k = 1 with probability `density`, else 0. arXiv 2311.03099: drop 0.9, density 0.1. The
    rescaling to an equal L1 norm that some tools have instead is not the paper's.

    Args:
        delta: [*shape], of one expert; overwritten.
        density: The probability that an entry stays.

    Returns m delta / density; its expectation is the expert with nothing dropped.
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
    """DARE, then the election of `ties`, with t_k = m_k delta_k / density.

    m_k = 1 with probability `density`, else 0. arXiv 2311.03099: drop 0.9, density 0.1. To trim to
    20 % as well, as `ties` does, would find no more than these left.

    Args:
        deltas: [experts, *shape].
        weights: [experts].
        density: The probability that an entry stays.

    Returns [*shape]; for one expert its expectation is that expert.
    """
    return _by_pieces(
        deltas, lambda piece: _elected(_dropped(piece, density, generator), weights, normalize)
    ).mul_(scale)


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
    """DELLA: drop entries by their rank in their row (MagPrune), then the election of `ties`.

        p = density - window / 2 + window r / (n - 1)
        t_k = m_k delta_k / p,    m_k = 1 with probability p, else 0

    r = 0 ... n - 1 is the rank of |delta_k| in its row of n entries: the larger, the likelier kept.
    arXiv 2406.11617: drop 0.3, window 0.14, scale 1.1 in the example of its code. Half the window
    is what some tools call epsilon.

    Args:
        deltas: [experts, ..., n].
        weights: [experts].

    Returns [..., n]; for one expert its expectation is that expert times `scale`.
    """
    chances = torch.linspace(density - window / 2, density + window / 2, deltas.shape[-1])
    for delta in deltas:
        ranked = torch.from_numpy(np.argsort(delta.abs().numpy(), axis=-1))
        chance = torch.empty_like(delta).scatter_(-1, ranked, chances.expand_as(delta))
        delta.mul_(torch.rand(delta.shape, generator=generator).lt_(chance)).div_(chance)
    return _by_pieces(deltas, lambda piece: _elected(piece, weights, normalize)).mul_(scale)


def breadcrumbs(delta: Tensor, *, density: Density = 0.15, outliers: Share = 0.006) -> Tensor:
    """Model Breadcrumbs: sum_k w_k t_k, t_k without the largest and smallest entries of delta_k.

    Of n entries the int(outliers n) largest by magnitude go, and of the rest the int(density n)
    largest stay. arXiv 2312.06795; density 0.15, outliers 0.006 and weights of 0.2 are where the
    search of its code starts, which masks by row: here, as in the paper, by weight. Without
    outliers it is pruning by magnitude.

    Args:
        delta: [*shape], of one expert; overwritten.
        density: The share of entries that stay.
        outliers: The share of entries that go for being large.

    Returns t, [*shape].
    """
    gone = int(outliers * delta.numel())
    least, most = _bounds(delta[None], [gone + _kept(delta[None], density), gone + 1])[0]
    delta = delta.contiguous()
    for piece in delta.view(-1).split(_PIECE):
        size = piece.abs()
        piece.mul_((size >= least) & (size <= most))
    return delta


def pcb(deltas: Tensor, weights: Tensor, *, density: Density = 0.1) -> Tensor:
    """PCB: entries compete by their size in their expert and their agreement with the sum of all.

        d_k = delta_k with its magnitudes clamped to all but the 0.01 % smallest and largest
        score_k = exp(K norm(|d_k|)^2) tanh(delta_k sum_j delta_j)
        share_k = norm(score_k clamped to its `density` largest)
        delta = sum_k w_k share_k d_k / sum_k share_k

    norm: from 0 at the smallest entry of the weight to 1 at the largest. arXiv 2410.02396: density
    0.1 and lambda 1; with its evolutionary search 0.05 and lambda from 1.2. The paper compares
    entries over the whole model, here within a weight.

    Args:
        deltas: [experts, *shape].
        weights: [experts], the paper's lambda; an expert of weight 0 still competes.

    Returns [*shape].
    """
    flat = deltas.flatten(1)
    total = deltas.sum(0).flatten()
    top = torch.zeros_like(total)
    shares = torch.zeros_like(total)
    count, size = flat.shape
    for delta, weight in zip(flat, weights.tolist(), strict=True):
        ordered = _sorted(delta.abs())
        first = int(size * 1e-4)
        low = float(ordered[first])
        high = float(ordered[max(int(size * (1 - 1e-4) - 1), first)])
        magnitude = delta.abs().clamp_(low, high)

        # The factor e^(-K / 2), which the second norm takes out, keeps the first of many experts
        # from overflowing.
        score = (
            _unit(magnitude, low, high)
            .square_()
            .sub_(0.5)
            .mul_(count)
            .exp_()
            .mul_((delta * total).tanh_())
        )

        ordered = _sorted(score)
        least = float(ordered[min(int(size * (1 - density)), size - 1)])
        share = _unit(score, least, float(ordered[-1]))
        shares.add_(share)
        top.addcmul_(magnitude.copysign_(delta).mul_(delta != 0), share, value=weight)
    return top.div_(shares.clamp_min_(1e-12)).view(deltas.shape[1:])


def consensus(
    deltas: Tensor, weights: Tensor, *, threshold: NotNegative = 0.5, agree: Count = 2
) -> Tensor:
    """Consensus task arithmetic by TALL masks: entries stay that matter to `agree` experts or more.

        m_k = |delta_k| > threshold |sum_j delta_j - delta_k|
        delta = sum_k w_k delta_k where sum_k m_k >= agree, else 0

    arXiv 2405.07813 searches the threshold from 0.2 to 0.6 for each task; 0.5 is that of MergeBench
    (arXiv 2505.10833).

    Args:
        deltas: [experts, *shape].
        weights: [experts], 0.3 by default as in task arithmetic; they do not move the masks.
        threshold: See above.
        agree: 1 removes what matters to none, 2, the default, also what matters to one.

    Returns [*shape].
    """

    def merge(piece: Tensor) -> Tensor:
        active = (piece.sum(0) - piece).abs_().mul_(threshold).lt_(piece.abs()).sum(0)
        return torch.mv(piece.t(), weights).mul_(active >= agree)

    return _by_pieces(deltas, merge)


def localize_and_stitch(deltas: Tensor, weights: Tensor, *, density: Density = 0.05) -> Tensor:
    """Localize-and-Stitch without data: each expert's largest entries, averaged where they overlap.

        delta = sum_k w_k m_k delta_k / sum_k w_k m_k

    m_k = 1 where delta_k is among its int(density n) largest of n entries by magnitude and not 0,
    else 0. arXiv 2408.13656; 0.05 is its code's for language models (0.1 for vision). The masks
    that it learns on data are not here.

    Args:
        deltas: [experts, *shape].
        weights: [experts].
        density: The share of entries that stay.

    Returns [*shape]. One expert comes out trimmed.
    """
    least = _bounds(deltas, [_kept(deltas, density)])

    def merge(piece: Tensor) -> Tensor:
        mask = piece.mul_(piece.abs().ge_(least)).ne(0).float()
        return torch.mv(piece.t(), weights).div_(torch.mv(mask.t(), weights).clamp_min_(_TINY))

    return _by_pieces(deltas, merge)


def cabs(deltas: Tensor, weights: Tensor, *, keep: Count = 64, of: Count = 256) -> Tensor:
    """CABS: delta = sum_k w_k t_k, where no two experts share an entry.

    t_k has the `keep` largest of each `of` successive entries that no expert before k took. The
    order of the experts matters, and `keep` times the experts may not exceed `of`. Of a rest
    shorter than `of` the same share is kept, rounded down. arXiv 2503.01874 and its code: 64 of
    256.

    Args:
        deltas: [experts, *shape].
        weights: [experts].

    Returns [*shape].
    """
    flat = deltas.reshape(len(deltas), -1)
    result = torch.zeros_like(flat[0])
    free = torch.ones_like(flat[0])
    rest = len(result) % of
    for delta, weight in zip(flat, weights.tolist(), strict=True):
        size = delta.abs() * free
        taken = torch.zeros_like(size)
        for start, end, group in ((0, len(size) - rest, of), (len(size) - rest, len(size), rest)):
            groups, into = (
                part[start:end].view(-1, group) if group else part[:0] for part in (size, taken)
            )
            into.scatter_(-1, groups.topk(group * keep // of).indices, 1)
        taken.mul_(size > 0)
        free.sub_(taken)
        result.addcmul_(taken, delta, value=weight)
    return result.view(deltas.shape[1:])


def _by_pieces(deltas: Tensor, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the merge of deltas, [*shape], of pieces [experts, some] that it may overwrite."""
    result = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    for into, piece in zip(
        result.view(-1).split(_PIECE), deltas.reshape(len(deltas), -1).split(_PIECE, 1), strict=True
    ):
        into.copy_(merge(piece))
    return result


def _elected(piece: Tensor, weights: Tensor, normalize: bool) -> Tensor:
    """Return the weighted sum, or mean, of the entries that have the sign of the weighted sum.

    Args:
        piece: [experts, n], overwritten.
        weights: [experts].
        normalize: Whether to return the mean.
    """
    sign = piece.mul_(weights[:, None]).sum(0).sign_()
    agreeing = piece.mul_(sign).relu_()
    total = agreeing.sum(0)
    if normalize:
        total.div_(torch.mv(agreeing.sign().t(), weights.abs()).clamp_min_(_TINY))
    return total.mul_(sign)


def _dropped(piece: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Divide each entry by `density` with that probability, and set it to 0 else, in place."""
    return piece.mul_(torch.rand(piece.shape, generator=generator).lt_(density)).div_(density)


def _kept(deltas: Tensor, density: float) -> int:
    """Return how many entries of an expert stay."""
    return max(1, int(density * deltas[0].numel()))


def _bounds(deltas: Tensor, ranks: list[int]) -> Tensor:
    """Return which magnitudes have these ranks in each expert, 1 the largest: [experts, ranks]."""
    return torch.stack([_sorted(delta.abs())[[-rank for rank in ranks]] for delta in deltas])


def _sorted(values: Tensor) -> Tensor:
    """Return all entries, rising, as one line."""
    # NumPy's sort is vectorised: some five times as fast as `kthvalue`, and not slowed by equal
    # values as selecting is.
    return torch.from_numpy(np.sort(values.numpy(), axis=None))


def _unit(values: Tensor, low: float, high: float) -> Tensor:
    """Return values as 0 at `low` and below, 1 at `high` and above; 0 if these are the same."""
    return values.clamp(low, high).sub_(low).div_(max(high - low, _TINY))


def _check_breadcrumbs(experts: int, density: float, outliers: float) -> str | None:
    if density + outliers <= 1:
        return None
    return f"density {density} and outliers {outliers} are together more than 1"


def _check_della(experts: int, density: float, window: float, **_: Value) -> str | None:
    if window / 2 < density <= 1 - window / 2:
        return None
    return (
        f"probabilities must be above 0 and at most 1; density {density} and window {window} go"
        " beyond"
    )


def _check_cabs(experts: int, keep: int, of: int) -> str | None:
    if keep * experts <= of:
        return None
    return f"{experts} experts cannot keep {keep} of every {of} entries without sharing any"


ROWS = (
    Method("ties", ties, "TIES, arXiv 2306.01708", weights="sum"),
    Method("dare_linear", dare_linear, "DARE, arXiv 2311.03099", weights="sum"),
    Method("dare_ties", dare_ties, "DARE, arXiv 2311.03099", weights="sum", blocks=True),
    Method("della", della, "DELLA, arXiv 2406.11617", weights="sum", check=_check_della),
    Method(
        "breadcrumbs",
        breadcrumbs,
        "Model Breadcrumbs, arXiv 2312.06795",
        weights="sum",
        weight=0.2,
        check=_check_breadcrumbs,
    ),
    Method("pcb", pcb, "PCB, arXiv 2410.02396", weights="sum"),
    Method(
        "consensus",
        consensus,
        "TALL masks, arXiv 2405.07813",
        weights="sum",
        weight=0.3,
        at_least=2,
        blocks=True,
    ),
    Method("localize_and_stitch", localize_and_stitch, "Localize-and-Stitch, arXiv 2408.13656"),
    Method("cabs", cabs, "CABS, arXiv 2503.01874", weights="sum", check=_check_cabs),
)
