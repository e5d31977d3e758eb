"""OrthoMerge: the base's weight turned by a mean of the experts' rotations.

What no rotation explains is averaged, and added to it.
"""

import torch
from torch import Tensor

from adapters.errors import MergeError
from adapters.merge.method import Method

_RIDGE = 1e-6  # of the mean squared singular value of the base's weight
_CANCELLED = 1e-6  # of the sizes: directions that sum to less are the rounding of float32 deltas


def ortho_merge(deltas: Tensor, weights: Tensor, *, base: Tensor) -> Tensor:
    """OrthoMerge by orthogonal-residual decoupling (arXiv 2602.05943, its code's "G" scripts).

    For each expert the rotation of the inputs that explains it best, R_k = argmin |W_0 R - (W_0 +
    delta_k)|, from the SVD U S V^T of W_0^T (W_0 + delta_k) as U V^T, the least direction of U
    turned round where that is a reflection (the code keeps reflections, which have no Cayley form),
    and the Cayley form Q_k = (R_k + I)^-1 (R_k - I), skew. Directions and sizes are averaged apart:

        Q = sum_k w_k Q_k, made as long as sum_k w_k |Q_k|, or 0 where they cancel
        R = (I - Q)^-1 (I + Q)
        merged = W_0 (R - I) + sum_k w_k (delta_k - W_0 (R_k - I))

    What W_0 leaves open of R_k (out < in) is as near to I as can be, by |R - I|^2 times 1e-6 of
    W_0's mean squared singular value; the code takes arbitrary vectors. The code adds 0.2 times the
    sum of its 5 experts' residuals, which is their mean.

    Args:
        deltas: [experts, out, in].
        weights: [experts], shares.
        base: [out, in].

    Returns [out, in]; one expert alone comes back unchanged. It costs an SVD of [in, in] for each
    expert and weight. Raises MergeError if an expert turns the weight by a half turn, which has no
    Cayley form either.
    """
    w = base.double()
    eye = torch.eye(w.shape[1], dtype=w.dtype)
    gram = w.t() @ w
    gram += _RIDGE * gram.trace() / len(gram) * eye

    # Sums over the experts, directions and sizes apart.
    skew = torch.zeros_like(gram)
    size = torch.zeros((), dtype=w.dtype)
    residual = torch.zeros_like(w)
    for weight, delta in zip(weights, deltas.double(), strict=True):
        rotation = _nearest_rotation(gram + w.t() @ delta)
        q = _skew(rotation, eye)
        skew += weight * q
        size += weight * q.norm()
        residual += weight * (delta - w @ (rotation - eye))

    length = skew.norm()
    skew *= size / length if length > _CANCELLED * size else 0
    return (residual + w @ (_rotation(skew, eye) - eye)).float()


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """Return argmax over rotations R of tr(R^T matrix), [in, in]."""
    u, _, vt = torch.linalg.svd(matrix)
    if torch.linalg.det(u @ vt) < 0:
        u[:, -1].neg_()
    rotation: Tensor = u @ vt
    return rotation


def _rotation(skew: Tensor, eye: Tensor) -> Tensor:
    """Return (I - Q)^-1 (I + Q) of a skew matrix Q."""
    rotation: Tensor = torch.linalg.solve(eye - skew, eye + skew)
    return rotation


def _skew(rotation: Tensor, eye: Tensor) -> Tensor:
    """Return the inverse of `_rotation`; raise MergeError for a half turn, which has none."""
    half: Tensor = torch.linalg.solve_ex(rotation + eye, rotation - eye)[0] / 2
    q = half - half.t()
    if not torch.allclose(_rotation(q, eye), rotation, atol=1e-6):
        raise MergeError(
            "ortho_merge: an expert turns a weight of the base by a half turn; leave that"
            " expert out"
        )
    return q


ROWS = (Method("ortho_merge", ortho_merge, "OrthoMerge, arXiv 2602.05943", vectors="mean"),)
