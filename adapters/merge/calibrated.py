"""Merges weighted by what the experts do on calibration inputs.

That is the Fisher information, or the second moments of a layer's inputs. They are stated for
weights. Every weight is the base's plus a delta and a mean's weights sum to one, so on deltas they
are the same.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from adapters.merge.method import Chance, Method, Positive


def fisher(deltas: Tensor, weights: Tensor, *, fishers: Tensor, floor: Positive = 1e-6) -> Tensor:
    """Fisher merging (arXiv 2111.09832): the mean, weighted by how much experts depend on entries.

    merged = sum_k w_k F_k delta_k / sum_k w_k F_k, with F_k at least `floor`: an entry that matters
    to nobody gets the mean.

    Args:
        deltas: [experts, *shape].
        weights: [experts], shares.
        fishers: [experts, *shape], F_k, the diagonal of the Fisher information. The authors' code
            also scales every expert's F to one norm over the whole model; that is left to whoever
            computes F.
        floor: 1e-6 in the authors' code, which by default raises only the first expert's; here all
            are raised alike.

    Returns [*shape]. One expert alone comes back unchanged.
    """
    shares = fishers.clamp(min=floor) * weights.view(-1, *[1] * (deltas.ndim - 1))
    return (shares * deltas).sum(0) / shares.sum(0)


def regmean(
    deltas: Tensor, weights: Tensor, *, grams: Tensor, off_diagonal: Chance = 0.9
) -> Tensor:
    """RegMean (arXiv 2212.09849): the layer whose outputs are nearest to every expert's.

    Each expert counts on its own inputs: argmin_T sum_k w_k tr((T - delta_k) G'_k (T - delta_k)^T)
    = (sum_k w_k delta_k G'_k) (sum_k w_k G'_k)^-1, where G'_k is G_k = sum_x x x^T with its entries
    off the diagonal times `off_diagonal`, which keeps the sum invertible; `lot` is without.

    Args:
        deltas: [experts, out, in].
        weights: [experts], shares.
        grams: [experts, in, in], G_k.
        off_diagonal: 0.9 in the authors' demonstration, 0.1 in the configurations of their
            experiments; MergeBench takes 0.5.

    Returns [out, in]: one expert alone unchanged, but for inputs that were always zero, which get a
    zero delta.
    """
    total, moments = _moments(deltas, (_reduced(gram, off_diagonal) for gram in grams), weights)
    total.diagonal().masked_fill_(total.diagonal() == 0, 1)
    merged: Tensor = torch.linalg.solve(total, moments, left=False)
    return merged.to(deltas.dtype)


def lot(deltas: Tensor, weights: Tensor, *, grams: Tensor) -> Tensor:
    """LOT, Layer-wise Optimal Task vector merging (arXiv 2505.23859), read from its abstract.

    Its code was not found. argmin_T sum_k w_k |X_k (T - T_k)|^2, the drift of the features: T* =
    (sum_k w_k X_k^T X_k)^+ sum_k w_k X_k^T X_k T_k, with T_k = delta_k^T and X_k^T X_k = G_k:
    RegMean with nothing scaled. Directions in which there were no inputs stay the base's. The
    pseudo-inverse takes for zero what is not above the rounding of the grams' dtype: sum them in
    float64.

    Args:
        deltas: [experts, out, in].
        weights: [experts], shares.
        grams: [experts, in, in], G_k.

    Returns [out, in].
    """
    total, moments = _moments(deltas, grams, weights)
    zero = len(total) * torch.finfo(grams.dtype).eps
    inverse: Tensor = torch.linalg.pinv(total, rtol=zero, hermitian=True)
    return (moments @ inverse).to(deltas.dtype)


def _moments(deltas: Tensor, grams: Iterable[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_k w_k G_k, [in, in], and sum_k w_k delta_k G_k, [out, in], float64."""
    total = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    moments = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for weight, delta, gram in zip(weights, deltas, grams, strict=True):
        weighted = weight * gram.double()
        total += weighted
        moments.addmm_(delta.double(), weighted)
    return total, moments


def _reduced(gram: Tensor, off_diagonal: float) -> Tensor:
    diagonal = gram.double().diagonal().diag()
    return diagonal + off_diagonal * (gram.double() - diagonal)


ROWS = (
    Method("fisher", fisher, "Fisher merging, arXiv 2111.09832"),
    Method("regmean", regmean, "RegMean, arXiv 2212.09849", vectors="mean"),
    Method("lot", lot, "LOT Merging, arXiv 2505.23859, read from its abstract", vectors="mean"),
)
