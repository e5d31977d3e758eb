"""Merges published on the factors a and b themselves, each merged apart from the other.

That is not a merge of the deltas b a: it depends on which of the many factors of a delta an expert
was trained into.
"""

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from adapters.errors import MergeError
from adapters.expert import LowRank
from adapters.merge.method import Density, Method, Positive

NOT_IMPLEMENTED = MappingProxyType(
    {
        "lora_lego": (
            "LoRA-LEGO (arXiv 2409.16167): how its dual reweighting scales the centroids could not"
            " be obtained, nor code of its authors; use knots, or cat and compress the result to"
            " the rank you want"
        ),
    }
)

_AMPLIFIED = 0.2  # the share of ranks whose own amplification counts, att_ratio in the code


def copa(
    factors: Sequence[LowRank], weights: Tensor, *, density: Density = 0.2, scale: Positive = 2.0
) -> LowRank:
    """CoPA-Merging, also RobustMerge (arXiv 2502.17159), on factors as in the authors' code.

    It equals no merge of the deltas. m(x) keeps the largest `density` of a factor's entries. For
    each rank, s_k = |a_k|_1 / |m(a_k)|_1, [rank], is how much the pruning took from its row of a (1
    where it took all), raised to at least the 80th percentile of the expert's ranks:

        a = scale sum_k w_k m(a_k)
        b = scale sum_k w_k s_k m(b_k) / sum_k s_k

    Args:
        factors: [experts], a: [rank, in], b: [out, rank], the LoRA scale in b. An expert of rank 0
            takes no part.
        weights: [experts], factors of the deltas.
        density: 0.2, mask_ratio in the code.
        scale: 2, fuse_weight in the code.

    Returns a: [rank, in], b: [out, rank]. Raises MergeError if the other experts have not one rank.
    """
    present = [
        (weight, factor) for weight, factor in zip(weights, factors, strict=True) if factor.rank
    ]
    ranks = {factor.rank for _, factor in present}
    if len(ranks) != 1:
        raise MergeError(
            f"copa merges experts of one rank, got ranks {sorted(ranks)}; compress them to one"
            " first"
        )

    a = torch.stack([factor.a.float() for _, factor in present])
    b = torch.stack([factor.b.float() for _, factor in present])
    shares = scale * torch.stack([weight for weight, _ in present])[:, None, None]
    kept = _largest(a, density)
    s = _amplification(a.abs().sum(2), kept.abs().sum(2))[:, None, :]
    return LowRank((shares * kept).sum(0), (shares * s * _largest(b, density)).sum(0) / s.sum(0))


def _largest(stack: Tensor, density: float) -> Tensor:
    """Return each expert's factor without its smallest entries.

    Args:
        stack: [experts, rows, columns].
    """
    size = stack[0].numel()
    threshold = stack.abs().flatten(1).kthvalue(max(1, int(size * (1 - density))), 1).values
    return stack.where(stack.abs() >= threshold[:, None, None], 0)


def _amplification(before: Tensor, after: Tensor) -> Tensor:
    """Return before / after, [experts, rank], of each expert at least its 80th percentile."""
    s = torch.where(after > 0, before / after, 1)
    floor = s.sort(1).values[:, int(s.shape[1] * (1 - _AMPLIFIED))]
    return s.maximum(floor[:, None])


ROWS = (
    Method(
        "copa", copa, "CoPA-Merging / RobustMerge, arXiv 2502.17159", weights="sum", vectors="mean"
    ),
)
