"""The bank: all experts' factors of one weight, stacked, so that any mix is two dense products.

For a request with coefficients c, y = W x + sum_k c_k b_k a_k x. With A = [a_1; ...; a_K] and B = [b_1 | ... | b_K],

    y = W x + B (c[expert] * (A x))          expert[j] = which expert row j of A belongs to

which is exact for mixed ranks: A and B are never averaged separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.expert import LowRank


@dataclass(frozen=True)
class Bank:
    """Stacked factors of one weight. a: [rows, in]   b: [out, rows]   expert: [rows], the index of each row's expert."""

    a: Tensor
    b: Tensor
    expert: tuple[int, ...]

    def add_(self, y: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """y += B (rows * (A x)), in place.

        y: [tokens, out]   x: [tokens, in]   rows: [tokens, rows], the coefficients of each token's request in float32
        """
        h = torch.nn.functional.linear(x, self.a)
        h = (h * rows).to(y.dtype)
        return y.addmm_(h, self.b.t())

    def to(self, device: torch.device, dtype: torch.dtype) -> "Bank":
        # B is kept as the transpose of a contiguous [rows, out] matrix: the layout the expand product reads fastest.
        b = self.b.t().to(device, dtype).contiguous().t()
        return Bank(self.a.to(device, dtype).contiguous(), b, self.expert)


def stack(factors: Sequence[LowRank | None]) -> Bank | None:
    """One bank from each expert's factors of one weight, None for an expert that leaves the weight alone."""
    present = [(k, f) for k, f in enumerate(factors) if f is not None]
    if not present:
        return None
    a = torch.cat([f.a for _, f in present], 0)
    b = torch.cat([f.b for _, f in present], 1)
    return Bank(a, b, tuple(k for k, f in present for _ in range(f.rank)))


def fuse(slices: Sequence[Bank | None], out_sizes: Sequence[int]) -> Bank | None:
    """One bank for a weight that stacks several along its output (q, k and v; gate and up), from a bank for each.

    Slice i fills rows offset_i .. offset_i + out_sizes[i] of the output; the rest of its columns of B is zero.
    """
    present = [bank for bank in slices if bank is not None]
    if not present:
        return None
    a = torch.cat([bank.a for bank in present], 0)
    b = torch.zeros(sum(out_sizes), a.shape[0], dtype=a.dtype)
    row = column = 0
    for bank, size in zip(slices, out_sizes, strict=True):
        if bank is not None:
            width = bank.a.shape[0]
            b[row : row + size, column : column + width] = bank.b
            column += width
        row += size
    return Bank(a, b, tuple(e for bank in present for e in bank.expert))
