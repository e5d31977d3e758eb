"""Merges by singular values and vectors.

They are those of each expert's delta, of the sum, or of all deltas side by side.

All but KnOTS turn with the space they are in: where every delta_k = Q C_k P^T with orthonormal Q
and P, the merge is that of the C_k between Q and P^T. Low-rank experts are merged so, exactly, in
the space that their factors span (`in_span`).

Singular values that are zero but for the rounding of float32 belong to no direction of an expert
and are left out everywhere; the published code keeps them, with vectors that are arbitrary. With
that, a merge of low-rank experts is low-rank.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor

from adapters.expert import LowRank
from adapters.merge.method import CountOrZero, Density, Method, Positive, Rule, Share
from adapters.merge.sparse import ties

Triplets = tuple[Tensor, Tensor, Tensor]
"""U, [out, r], S, [r], and V, [in, r], of U diag(S) V^T."""
Ratio = Annotated[float, Rule("at least 1", lambda v: v >= 1)]

_NOISE = 1e-6  # of a delta's norm: float32 leaves about 1e-7 of it where there is nothing


def star(deltas: Tensor, weights: Tensor, *, share: Density = 0.4) -> Tensor:
    """STAR (arXiv 2502.10339): the mean of deltas without their small singular values.

    Its name is Spectral Truncation and Rescale. For delta_k = U S V^T keep the r largest values,
    the fewest that hold `share` of the nuclear norm: T_k = (sum S / sum S_r) U_r S_r V_r^T, which
    has the nuclear norm of delta_k; merged = sum_k w_k T_k.

    Args:
        deltas: [experts, out, in].
        weights: [experts], shares.
        share: Eta, 40 % in the authors' code.

    Returns [out, in]. One expert alone comes back truncated.
    """
    merged = torch.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        u, s, v = _svd(delta)
        kept = int(torch.searchsorted(s.cumsum(0), share * s.sum())) + 1
        scaled = weight * s[:kept] * (s.sum() / s[:kept].sum())
        merged += ((u[:, :kept] * scaled) @ v[:, :kept].t()).to(merged.dtype)
    return merged


def tsv_m(deltas: Tensor, weights: Tensor) -> Tensor:
    """TSV-Merge (arXiv 2412.00081): all experts' singular triplets, their vectors made orthogonal.

    With w_k delta_k = U_k S_k V_k^T, U = [U_1 | ... | U_N] and V alike, merged = polar(U) diag(S_1,
    ..., S_N) polar(V)^T, where polar is the nearest matrix with orthonormal columns. Of each expert
    the largest min(out, in) // N triplets are kept as published, but only where not all of them
    fit, which those of low-rank experts do.

    Args:
        deltas: [experts, out, in].
        weights: [experts], factors; 1 in the paper.

    Returns [out, in]: the plain sum of experts whose vectors are orthogonal already, one expert
    alone unchanged. Where experts share a direction, U has no full rank: its polar factor then has
    no direction outside of the experts' (the published SVD completes it by arbitrary ones).
    """
    u, s, v = _beside(_fitting(deltas, weights))
    return ((_polar(u) * s) @ _polar(v).t()).to(deltas.dtype)


def iso_c(deltas: Tensor, weights: Tensor) -> Tensor:
    """Iso-C (arXiv 2502.04959): the sum of the deltas with a flat spectrum.

    sum_k w_k delta_k = U S V^T; merged = mean(S) U V^T, of the same nuclear norm.

    Args:
        deltas: [experts, out, in].
        weights: [experts], factors: 1, times the paper's alpha, which it tunes on validation data.

    Returns [out, in]. The mean is over the singular values that are not zero.
    """
    return _flat(*_svd(_sum(deltas, weights))).to(deltas.dtype)


def iso_cts(deltas: Tensor, weights: Tensor, *, common: Share = 0.8) -> Tensor:
    """Iso-CTS (arXiv 2502.04959): Iso-C with room for the directions of single experts.

    They take the place of the least directions. Of the n triplets of sum_k w_k delta_k the first c,
    a share `common`, stay: U_c, V_c. Each expert adds the (n - c) / N largest triplets of (I - U_c
    U_c^T) w_k delta_k. With all of them side by side, merged = mean(S) polar(U) polar(V)^T.

    Args:
        deltas: [experts, out, in].
        weights: [experts], factors.
        common: 0.8 in the paper, rounded as in its code so that each expert adds equally many.

    Returns [out, in].
    """
    u, s, v = _svd(_sum(deltas, weights))
    n = len(s)
    experts = len(deltas)
    own = min(round((n - int(n * common)) / experts), n // experts)
    parts = [_first(n - own * experts, (u, s, v))]
    basis = parts[0][0]
    for weight, delta in zip(weights, deltas, strict=True):
        scaled = weight * delta.double()
        parts.append(_first(own, _svd(scaled - basis @ (basis.t() @ scaled))))
    u, s, v = _beside(parts)
    return _flat(_polar(u), s, _polar(v)).to(deltas.dtype)


def knots(
    deltas: Tensor, weights: Tensor, *, density: Density = 1.0, scale: Positive = 1.0
) -> Tensor:
    """KnOTS (arXiv 2410.19735) with TIES, in the output directions that the experts span.

    [delta_1 | ... | delta_N] = U S [V_1^T | ... | V_N^T]; merged = U ties(S V_1^T, ..., S V_N^T).
    As S V_k^T = U^T delta_k only U is computed, from the Gram matrix sum_k delta_k delta_k^T, [out,
    out].

    Args:
        deltas: [experts, out, in].
        weights: [experts], those of TIES.
        density: That of TIES; the authors' configuration for Llama-3 8B trims nothing, as here.
        scale: That of TIES; 0.5 in that configuration.

    Returns [out, in]: with a mean in place of TIES it would be that of the deltas. One expert alone
    comes back scaled.
    """
    gram = torch.zeros(deltas.shape[1], deltas.shape[1], dtype=torch.float64)
    for delta in deltas:
        gram.addmm_(delta.double(), delta.double().t())
    values, vectors = torch.linalg.eigh(gram)
    basis: Tensor = vectors[:, values > _NOISE**2 * gram.trace()].to(deltas.dtype)
    return basis @ _ties(basis.t() @ deltas, weights, density, scale)


def dc_merge(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Density = 0.1,
    ratio: Ratio = 1.0,
    scale: Positive = 1.0,
) -> Tensor:
    """DC-Merge, "Improving Model Merging with Directional Consistency" (CVPR 2026).

    The formula is that of the authors' code. Each delta_k = U_k S_k V_k^T gets a smoother spectrum
    of the same sum, S'_k ~ linspace(min(ratio, s_1 / s_r), 1): flat where the ratio is 1. With the
    bases P = polar([U_1 | ... | U_N]) and Q = polar([V_1 | ... | V_N]), M = ties(P^T U_k S'_k V_k^T
    Q over k), of which only the block of each expert's own directions stays: merged = P mask(M)
    Q^T. Triplets are kept as in TSV-M.

    Args:
        deltas: [experts, out, in].
        weights: [experts], those of TIES.
        density: That of TIES, the default of the code's function; its two scripts pass 0.001, which
            of 8 experts of rank 16 keeps as many entries as there are directions, but of few
            experts not one for each.
        ratio: 1 is the code's "average", its default, and 5 its default where "linear" is asked
            for; the code smooths no full fine-tunes.
        scale: That of TIES.

    Returns [out, in].
    """
    parts = _fitting(deltas, torch.ones(len(deltas)))
    us, _, vs = _beside(parts)
    left = _polar(us)
    right = _polar(vs)
    cores = torch.stack(
        [(left.t() @ (u * _smoothed(s, ratio))) @ (v.t() @ right) for u, s, v in parts]
    )
    own: Tensor = torch.block_diag(
        *[torch.ones(len(s), len(s), dtype=s.dtype) for _, s, _ in parts]
    )
    merged: Tensor = left @ (_ties(cores, weights, density, scale) * own) @ right.t()
    return merged.to(deltas.dtype)


def opcm(deltas: Tensor, weights: Tensor, *, alpha: Share = 0.5) -> Tensor:
    """OPCM (arXiv 2501.09522): experts are added in turn, without what lies along earlier ones.

    M_1 = delta_1, and with M_(t-1) = U S V^T, C = U^T delta_t V: M_t = M_(t-1) + delta_t - U C'
    V^T, where C' is the diagonal of C and its first r x r block, r being how many leading singular
    values together stay within a share `alpha` of the nuclear norm. merged = M_N times mean_k
    |delta_k| / |M_N|: the running lambda_t of the paper, which keeps the norm of every step at that
    mean, cancels out of all but the last.

    The code takes these norms over the whole model, here they are the weight's own.

    Args:
        deltas: [experts, out, in], in their order, which matters.
        weights: [experts], factors.
        alpha: 0.5 in the authors' code.

    Returns [out, in]: one expert alone unchanged.
    """
    scaled = deltas.double() * weights[:, None, None]
    merged = scaled[0].clone()
    for delta in scaled[1:]:
        u, s, v = _svd(merged)
        core = u.t() @ delta @ v
        along = core.diagonal().diag()
        block = int((s.cumsum(0) <= alpha * s.sum()).sum())
        along[:block, :block] = core[:block, :block]
        merged += delta - u @ along @ v.t()
    norm = float(merged.norm())
    wanted = sum(float(delta.norm()) for delta in scaled) / len(scaled)
    return (merged * (wanted / norm if norm else 0)).to(deltas.dtype)


def wudi(deltas: Tensor, weights: Tensor, *, steps: CountOrZero = 0) -> Tensor:
    """WUDI (arXiv 2503.08099): the delta nearest to every expert's on that expert's own rows.

    The rows stand in for the expert's inputs. With T_k = w_k delta_k minimise sum_k |(T - T_k)
    T_k^T|^2 / |T_k|^2, Frobenius norms. It is quadratic: with G_k = T_k^T T_k / |T_k|^2, [in, in],
    every T with T sum_k G_k = sum_k T_k G_k is a minimum.

    Args:
        deltas: [experts, out, in].
        weights: [experts], factors.
        steps: 0 for the least such T, sum_k T_k G_k (sum_k G_k)^+; otherwise so many steps of
            Adam's from sum_k T_k with rate 1e-5, as published (300). Exact by default: 300 steps
            move no entry by more than about 0.003, so that where they stop depends on how large the
            deltas are.

    Returns [out, in]: one expert alone unchanged.
    """
    scaled = deltas.double() * weights[:, None, None]
    grams = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    moments = torch.zeros_like(scaled[0])
    for delta in scaled:
        gram = delta.t() @ delta / delta.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        grams += gram
        moments += delta @ gram
    if not steps:
        inverse: Tensor = torch.linalg.pinv(grams, rtol=1e-10, hermitian=True)
        return (moments @ inverse).to(deltas.dtype)
    merged = scaled.sum(0)
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(steps):
        merged.grad = 2 * (merged @ grams - moments)
        optimizer.step()
    return merged.to(deltas.dtype)


def in_span(method: Callable[..., Tensor]) -> Callable[..., LowRank]:
    """Return a method that turns with its space as one on factors.

    With [b_1 | ... | b_N] = Q [R_1 | ... | R_N] and [a_1; ...; a_N]^T = P [S_1 | ... | S_N], thin
    QRs, delta_k = Q (R_k S_k^T) P^T, so the merge is Q method(R_k S_k^T over k) P^T. It takes
    factors [experts], a: [rank, in], b: [out, rank], and returns a: [ranks, in], b: [out, ranks],
    the ranks added up.
    """

    def thin(factors: Sequence[LowRank], weights: Tensor, **options: float) -> LowRank:
        left, lefts = _spanned([f.b for f in factors])
        right, rights = _spanned([f.a.t() for f in factors])
        cores = torch.stack([r @ s.t() for r, s in zip(lefts, rights, strict=True)])
        return LowRank((method(cores, weights, **options) @ right.t()).float(), left.float())

    return thin


def _knots_thin(factors: Sequence[LowRank], weights: Tensor, **options: float) -> LowRank:
    """Merge by KnOTS in the outputs that the factors span; TIES needs the inputs as they are."""
    left, lefts = _spanned([f.b for f in factors])
    blocks = torch.stack([r @ f.a.double() for r, f in zip(lefts, factors, strict=True)])
    return LowRank(knots(blocks, weights, **options).float(), left.float())


def _wudi_thin(factors: Sequence[LowRank], weights: Tensor, *, steps: int) -> Tensor | LowRank:
    """Merge by WUDI in the span of the factors, but for steps of Adam's, which are on entries."""
    if steps:
        return wudi(torch.stack([f.dense() for f in factors]), weights, steps=steps)
    return in_span(wudi)(factors, weights)


def _spanned(parts: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Return an orthonormal basis of the columns of all parts, float64, and each part in it.

    Args:
        parts: [n, rank_k] each.
    """
    basis, inside = torch.linalg.qr(torch.cat(list(parts), 1).double())
    return basis, inside.split([part.shape[1] for part in parts], 1)


def _svd(matrix: Tensor) -> Triplets:
    """Return the triplets of a matrix, [out, in], float64, the largest first, without zeros."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return _first(int((s > _NOISE * s.norm()).sum()), (u, s, vt.t()))


def _first(count: int, triplets: Triplets) -> Triplets:
    """Return the first so many triplets."""
    u, s, v = triplets
    return u[:, :count], s[:count], v[:, :count]


def _beside(parts: Sequence[Triplets]) -> Triplets:
    """Return [U_1 | ... | U_N], (S_1, ..., S_N), [V_1 | ... | V_N]."""
    u, s, v = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return u, s, v


def _fitting(deltas: Tensor, weights: Tensor) -> list[Triplets]:
    """Return the triplets of each w_k delta_k.

    All of them, or equally many of each expert where all are more than min(out, in).
    """
    parts = [_svd(weight * delta) for weight, delta in zip(weights, deltas, strict=True)]
    room = min(deltas.shape[1:])
    fits = sum(len(s) for _, s, _ in parts) <= room
    return parts if fits else [_first(room // len(parts), part) for part in parts]


def _polar(matrix: Tensor) -> Tensor:
    """Return the polar factor U V^T of U S V^T.

    It is the nearest matrix with orthonormal columns, as far as the matrix has directions.
    """
    u, _, v = _svd(matrix)
    return u @ v.t()


def _flat(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Return mean(S) U V^T."""
    return s.sum() / max(1, len(s)) * (u @ v.t())


def _sum(deltas: Tensor, weights: Tensor) -> Tensor:
    """Return sum_k w_k delta_k."""
    total: Tensor = torch.tensordot(weights.to(deltas.dtype), deltas, 1)
    return total


def _ties(deltas: Tensor, weights: Tensor, density: float, scale: float) -> Tensor:
    """Merge by TIES in a basis.

    What is zero but for rounding must not vote for a sign, nor count in the mean.
    """
    if not deltas.numel():
        return deltas.sum(0)
    exact = deltas.where(deltas.abs() > _NOISE * deltas.abs().max(), 0).float()
    return ties(exact, weights, density=density, scale=scale).to(deltas.dtype)


def _smoothed(s: Tensor, ratio: float) -> Tensor:
    """Return singular values of the same sum on a line that falls by the ratio.

    Where their own ratio is less, it is that one.
    """
    if not len(s):
        return s
    line = torch.linspace(min(ratio, float(s[0] / s[-1])), 1, len(s), dtype=s.dtype)
    return line * (s.sum() / line.sum())


ROWS = (
    Method("star", star, "STAR, arXiv 2502.10339", vectors="mean", thin=in_span(star)),
    Method(
        "tsv_m",
        tsv_m,
        "TSV-Merge, arXiv 2412.00081",
        weights="sum",
        vectors="mean",
        thin=in_span(tsv_m),
    ),
    Method(
        "iso_c",
        iso_c,
        "Iso-C, arXiv 2502.04959",
        weights="sum",
        vectors="mean",
        thin=in_span(iso_c),
    ),
    Method(
        "iso_cts",
        iso_cts,
        "Iso-CTS, arXiv 2502.04959",
        weights="sum",
        vectors="mean",
        thin=in_span(iso_cts),
    ),
    Method(
        "knots",
        knots,
        "KnOTS-TIES, arXiv 2410.19735",
        weights="sum",
        vectors="mean",
        thin=_knots_thin,
    ),
    Method(
        "dc_merge",
        dc_merge,
        "DC-Merge, CVPR 2026",
        weights="sum",
        vectors="mean",
        thin=in_span(dc_merge),
    ),
    Method(
        "opcm", opcm, "OPCM, arXiv 2501.09522", weights="sum", vectors="mean", thin=in_span(opcm)
    ),
    Method("wudi", wudi, "WUDI, arXiv 2503.08099", weights="sum", vectors="mean", thin=_wudi_thin),
)
