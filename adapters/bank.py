"""The bank: all experts' factors of one layer, stacked, so that any mix is a few dense products.

For a request with coefficients c, y = W x + sum_k c_k b_k a_k x. With A = [a_1; ...; a_K] and B = [b_1 | ... | b_K],

    y = W x + B (c[expert] * (A x))          expert[j] = which expert row j of A belongs to

which is exact for mixed ranks: A and B are never averaged separately. A layer that stacks several weights along its output
(q, k and v; gate and up) has one A for all of them, and a B for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.expert import LowRank


@dataclass(frozen=True)
class Part:
    """The expand factors of one of a layer's weights. b: [rows, out], transposed, so that the product reads it in order.

    rows: which of the bank's rows are its own   out: which of the layer's outputs
    """

    b: Tensor
    rows: slice
    out: slice


@dataclass(frozen=True)
class Bank:
    """Stacked factors of one layer. a: [rows, in]   expert: [rows], the index of each row's expert."""

    a: Tensor
    parts: tuple[Part, ...]
    expert: tuple[int, ...]

    def add_(self, y: Tensor, x: Tensor, coefficients: Tensor) -> Tensor:
        """y += B (coefficients * (A x)), in place.

        y: [tokens, out]   x: [tokens, in]   coefficients: [tokens, rows], float32, those of each token's request
        """
        h = torch.nn.functional.linear(x, self.a)
        h = h.mul_(coefficients) if h.dtype == coefficients.dtype else (h * coefficients).to(h.dtype)
        for part in self.parts:
            y[:, part.out].addmm_(h[:, part.rows], part.b)
        return y

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + sum(part.b.nbytes for part in self.parts)


def build(weights: Sequence[Sequence[LowRank | None]], sizes: Sequence[int]) -> Bank | None:
    """The bank of a layer; None if no expert touches it.

    weights: for each of the layer's weights in their order, each expert's factors, None for one that leaves it alone
    sizes: the output size of each weight
    """
    parts: list[Part] = []
    shrink: list[Tensor] = []
    expert: list[int] = []
    out = 0
    for factors, size in zip(weights, sizes, strict=True):
        present = [(k, f) for k, f in enumerate(factors) if f is not None]
        if present:
            first = len(expert)
            shrink += [f.a for _, f in present]
            expert += [k for k, f in present for _ in range(f.rank)]
            b = torch.cat([f.b.t() for _, f in present])
            parts.append(Part(b, slice(first, len(expert)), slice(out, out + size)))
        out += size
    return Bank(torch.cat(shrink), tuple(parts), tuple(expert)) if parts else None
