"""How much experts get in each other's way: two of them weight by weight, or all as wholes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.deltas import Deltas
from adapters.expert import Expert
from adapters.low_rank import compress, make_canonical
from adapters.merge.merged import check_one_base

RANK = 16
"""How many singular vectors of a delta are compared that is not known by its factors."""
# Of the largest singular value: float32 deltas leave about 1e-7 of it where there is nothing.
_NOISE = 1e-6


@dataclass(frozen=True)
class Interference:
    """How two experts, a and b, meet in one weight that both touch."""

    weight: str
    cosine: float
    """<a, b> / (|a| |b|) of the two deltas."""
    conflict: float
    """Of the entries that are not zero in both, the share whose signs differ; about 0.5 for
    unrelated experts."""
    conflict_mass: float
    """The same, with each entry counted by the smaller of its two magnitudes."""
    overlap_in: float | None
    """How much of their input (row) spaces they share: the mean squared cosine of the principal
    angles, |Q_a^T Q_b|_F^2 / min(r_a, r_b). 0 if orthogonal, 1 if one lies in the other, and about
    max(r_a, r_b) / n for unrelated ones of n dimensions; None for a weight that is no matrix."""
    overlap_out: float | None
    """The same of their output (column) spaces."""
    norm_a: float
    """The Frobenius norm of the delta of a."""
    norm_b: float
    """The Frobenius norm of the delta of b."""


def compare(
    a: Deltas, b: Deltas, rank: int = RANK, names: tuple[str, str] = ("a", "b")
) -> list[Interference]:
    """Compare two experts in every weight that both touch, in the order of the first.

    A share of nothing, such as the cosine with a delta of zeros, is 0. Memory: the two deltas of
    one weight.

    Args:
        a: The one expert.
        b: The other.
        rank: Of a delta that is not known by its factors, the spaces of its so many largest
            singular vectors are compared.
        names: What a message calls them.

    Raises MergeError if they do not change one base.
    """
    check_one_base(dict(zip(names, (a, b), strict=True)))
    return [_compare_weight(weight, a, b, rank) for weight in a.shapes if weight in b.shapes]


def measure_cosines(experts: Sequence[Expert]) -> Tensor:
    """Return the cosine of each pair of low-rank experts, each taken as one long vector.

    <b_i a_i, b_j a_j> is the sum of (b_i^T b_j) * (a_i a_j^T), entry by entry, so that no delta is
    made: of a weight it takes rank^2 (in + out) products, where rank is that of all experts
    together. What one of them does not touch counts as zeros.

    Returns:
        [experts, experts], float64, symmetric; 0 for a delta of zeros.
    """
    products = torch.zeros(len(experts), len(experts), dtype=torch.float64)
    for module in {module for expert in experts for module in expert.factors}:
        own = [i for i, expert in enumerate(experts) if module in expert.factors]
        factors = [experts[i].factors[module] for i in own]
        a = torch.cat([factor.a for factor in factors]).double()
        b = torch.cat([factor.b for factor in factors], dim=1).double()
        owner = torch.tensor([i for i, f in zip(own, factors, strict=True) for _ in range(f.rank)])
        terms = (b.t() @ b) * (a @ a.t())
        by_row = torch.zeros(len(experts), len(owner), dtype=torch.float64)
        by_row.index_add_(0, owner, terms)
        products.index_add_(1, owner, by_row)
    norms = products.diagonal().clamp(min=0).sqrt()
    return products / (norms[:, None] * norms).clamp(min=torch.finfo(torch.float64).tiny)


def _compare_weight(weight: str, a: Deltas, b: Deltas, rank: int) -> Interference:
    x = a.delta(weight)
    y = b.delta(weight)
    norm_x, norm_y = (
        float(torch.linalg.vector_norm(delta, dtype=torch.float64)) for delta in (x, y)
    )
    products, smaller = x * y, torch.minimum(x.abs(), y.abs())
    differ, both = products < 0, products != 0

    overlap_in = overlap_out = None
    if x.ndim == 2:
        in_a, out_a = _spaces(a, weight, x, rank)
        in_b, out_b = _spaces(b, weight, y, rank)
        overlap_in = _overlap(in_a, in_b)
        overlap_out = _overlap(out_a, out_b)
    return Interference(
        weight=weight,
        cosine=_share(_total(products), norm_x * norm_y),
        conflict=_share(_total(differ), _total(both)),
        conflict_mass=_share(_total(smaller * differ), _total(smaller)),
        overlap_in=overlap_in,
        overlap_out=overlap_out,
        norm_a=norm_x,
        norm_b=norm_y,
    )


def _spaces(deltas: Deltas, weight: str, delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases of a delta's inputs and outputs, [in, r] and [out, r]."""
    factor = deltas.factors(weight)
    a, b = make_canonical(factor) if factor else compress(delta, rank=rank)[0]
    values = b.norm(dim=0)
    real = values > _NOISE * values[0]
    return a[real].t(), b[:, real] / values[real]


def _overlap(p: Tensor, q: Tensor) -> float:
    return _share(_total((p.t() @ q).square()), min(p.shape[1], q.shape[1]))


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
