"""Low-rank factors in one canonical form, and the nearest delta of a lower rank."""

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank

ROUNDING = 2.0**-20
"""What is so much smaller than the terms of its sum is their rounding to float32, and nothing."""
_BLOCK = 1 << 20


def make_canonical(factor: LowRank) -> LowRank:
    """Return the same delta with a = V^T and b = U S of its thin SVD, b a = U S V^T.

    With b = Q_b R_b and a^T = Q_a R_a only R_b R_a^T, [rank, rank], is decomposed. In float64, thus
    exact to the rounding of the result to float32; singular values up to the rounding of float64,
    eps s_1 max(out, in), count as zero.

    Returns:
        a: [r, in], orthonormal rows, the largest singular value's first, and the largest entry of
            each positive; r is the rank of the delta, at least 1.
        b: [out, r].
    """
    q_b, r_b = torch.linalg.qr(factor.b.double())
    q_a, r_a = torch.linalg.qr(factor.a.double().t())
    u, s, vt = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    rank = max(1, int((s > torch.finfo(s.dtype).eps * s[0] * max(len(q_b), len(q_a))).sum()))
    a, b = vt[:rank] @ q_a.t(), q_b @ (u[:, :rank] * s[:rank])
    sign = a.gather(1, a.abs().argmax(1, keepdim=True)).sign()
    return LowRank((a * sign).float(), (b * sign.t()).float())


def make_canonical_expert(
    expert: Expert, *, rank: int | None = None, energy: float | None = None
) -> Expert:
    """Return an expert with canonical factors, compressed as `compress` does if told to."""
    return Expert(
        expert.name,
        {module: compress(f, rank=rank, energy=energy)[0] for module, f in expert.factors.items()},
    )


def compress(
    change: LowRank | Tensor, *, rank: int | None = None, energy: float | None = None
) -> tuple[LowRank, float]:
    """Return the nearest delta of a lower rank, canonical, and the share of the energy it keeps.

    The nearest one is the truncated SVD (Eckart-Young). Energy is the squared Frobenius norm.

    Args:
        change: Factors, or a dense delta [out, in].
        rank: The most that the rank may be.
        energy: The share of the energy that the least sufficient rank is taken for. If both are
            given, the lower of the two ranks is taken.

    Raises ExpertError unless rank >= 1 and 0 < energy <= 1.
    """
    if isinstance(change, Tensor):
        return _compress_dense(change, rank, energy)
    whole = make_canonical(change)
    squares = whole.b.double().square().sum(0)
    kept = _kept_rank(squares, rank, energy)
    return LowRank(whole.a[:kept].clone(), whole.b[:, :kept].clone()), _share(squares, kept)


def energy_of(change: LowRank | Tensor) -> float:
    """Return the squared Frobenius norm, in float64; of factors it is tr(b^T b a a^T).

    Factors that cancel each other up to the rounding of float32 are nothing: their energy is 0.
    """
    if isinstance(change, Tensor):
        return sum(float(part.double().square().sum()) for part in change.reshape(-1).split(_BLOCK))
    a, b = change.a.double(), change.b.double()
    terms = (b.t() @ b) * (a @ a.t())
    energy = float(terms.sum())
    return energy if energy > ROUNDING**2 * float(terms.abs().sum()) else 0.0


def _compress_dense(delta: Tensor, rank: int | None, energy: float | None) -> tuple[LowRank, float]:
    """Compress by the eigenvectors of the smaller side's Gram matrix, the delta's singular vectors.

    A Gram matrix squares the singular values, and float64 holds the squares of what float32 can
    tell apart. Blocks of the longer side keep memory at a few matrices of the smaller one.
    """
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.t()
    blocks = wide.split(max(1, _BLOCK // len(wide)), 1)
    gram = sum(part.double() @ part.double().t() for part in blocks)
    values, vectors = torch.linalg.eigh(gram)
    squares, u = values.flip(0).clamp_(min=0), vectors.flip(1)
    kept = _kept_rank(squares, rank, energy)
    u = u[:, :kept]
    core = torch.cat([u.t() @ part.double() for part in blocks], 1)
    factors = LowRank(core, u) if wide is delta else LowRank(u.t(), core.t())
    return make_canonical(factors), _share(squares, kept)


def _kept_rank(squares: Tensor, rank: int | None, energy: float | None) -> int:
    """Return how many of the squared singular values, the largest first, to keep."""
    if rank is not None and rank < 1:
        raise ExpertError(f"rank {rank} is no rank; at least 1 is wanted")
    if energy is not None and not 0 < energy <= 1:
        raise ExpertError(f"energy {energy} is no share; a number above 0 and at most 1 is wanted")
    kept = len(squares)
    if energy is not None:
        tails = squares.flip(0).cumsum(0).flip(0)
        kept = max(1, int((tails > (1 - energy) * tails[0]).sum()))
    return min(kept, rank or kept)


def _share(squares: Tensor, kept: int) -> float:
    """Return the share of the energy that the first singular values hold."""
    total = squares.sum().item()
    return squares[:kept].sum().item() / total if total else 1.0
