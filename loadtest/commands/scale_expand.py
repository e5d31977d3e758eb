"""A Triton kernel for y += (h * coefficients) B: a candidate.

The engine does this in plain torch, with a product of its own for the coefficients. `python -m
loadtest kernel` shows, on a GPU, whether this kernel is worth taking its place.
"""

import triton
import triton.language as tl
from torch import Tensor

# Tokens, outputs and rows that one program takes at a time; tl.dot wants at least 16 of each.
TOKENS, OUTPUTS, ROWS = 16, 64, 32


def scale_expand_(y: Tensor, h: Tensor, coefficients: Tensor, b: Tensor) -> Tensor:
    """Add in place: y += (h * coefficients) b, accumulated in float32.

    Args:
        y: [tokens, out], its rows may lie apart.
        h: [tokens, rows].
        coefficients: [tokens, rows], float32.
        b: [rows, out].
    """
    tokens, rows = h.shape
    out = b.shape[1]
    assert y.shape == (tokens, out)
    assert coefficients.shape == h.shape
    assert b.shape[0] == rows
    assert y.stride(1) == 1
    assert all(t.is_contiguous() for t in (h, coefficients, b))
    grid = (triton.cdiv(out, OUTPUTS), triton.cdiv(tokens, TOKENS))
    _scale_expand[grid](
        y, h, coefficients, b, tokens, rows, out, y.stride(0), TOKENS, OUTPUTS, ROWS
    )
    return y


@triton.jit
def _scale_expand(  # noqa: PLR0913 - Triton takes pointers and sizes, no objects
    y,
    h,
    coefficients,
    b,
    tokens,
    rows,
    out,
    y_stride,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for first in range(0, rows, ROWS):
        r = first + tl.arange(0, ROWS)
        of_tokens = (t[:, None] < tokens) & (r[None, :] < rows)
        at = t[:, None].to(tl.int64) * rows + r[None, :]
        state = tl.load(h + at, mask=of_tokens, other=0.0)
        scale = tl.load(coefficients + at, mask=of_tokens, other=0.0)
        of_b = (r[:, None] < rows) & (n[None, :] < out)
        factor = tl.load(b + r[:, None].to(tl.int64) * out + n[None, :], mask=of_b, other=0.0)
        total += tl.dot(
            (state.to(tl.float32) * scale).to(factor.dtype), factor, input_precision="ieee"
        )
    inside = (t[:, None] < tokens) & (n[None, :] < out)
    where = y + t[:, None].to(tl.int64) * y_stride + n[None, :]
    before = tl.load(where, mask=inside, other=0.0).to(tl.float32)
    tl.store(where, (before + total).to(y.dtype.element_ty), mask=inside)
