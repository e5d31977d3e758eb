"""A Triton kernel for y += c s (S x), with the signs of one-bit experts: a candidate.

The engine does this in plain torch, which makes numbers of the signs of a block in memory first.
The kernel makes them in registers. It has been run in Triton's interpreter only.
"""

import triton
import triton.language as tl
from torch import Tensor

# Tokens, outputs and inputs that one program takes at a time; tl.dot wants at least 16 of each.
TOKENS, OUTPUTS, INPUTS = 16, 64, 64


def sign_expand_(y: Tensor, x: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
    """Add scale * (S x) to y in place, accumulated in float32.

    Args:
        y: [tokens, out], its rows may lie apart.
        x: [tokens, in].
        scale: [tokens], float32, each token's coefficient times the expert's scale.
        bits: [out, in / 8] uint8, as `adapters.bank.sign_bank.pack_signs` makes them.
    """
    tokens, inputs = x.shape
    out = len(bits)
    assert y.shape == (tokens, out)
    assert bits.shape[1] == -(-inputs // 8)
    assert y.stride(1) == 1
    assert all(t.is_contiguous() for t in (x, scale, bits))
    grid = (triton.cdiv(out, OUTPUTS), triton.cdiv(tokens, TOKENS))
    _sign_expand[grid](y, x, scale, bits, tokens, inputs, out, y.stride(0), TOKENS, OUTPUTS, INPUTS)
    return y


@triton.jit
def _sign_expand(  # noqa: PLR0913 - Triton takes pointers and sizes, no objects
    y,
    x,
    scale,
    bits,
    tokens,
    inputs,
    out,
    y_stride,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    width = (inputs + 7) // 8
    total = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for first in range(0, inputs, INPUTS):
        i = first + tl.arange(0, INPUTS)
        of_tokens = (t[:, None] < tokens) & (i[None, :] < inputs)
        at = t[:, None].to(tl.int64) * inputs + i[None, :]
        state = tl.load(x + at, mask=of_tokens, other=0.0)
        of_bits = (i[:, None] < inputs) & (n[None, :] < out)
        where = n[None, :].to(tl.int64) * width + i[:, None] // 8
        byte = tl.load(bits + where, mask=of_bits, other=0).to(tl.int32)
        sign = (((byte >> (7 - i[:, None] % 8)) & 1) * 2 - 1).to(state.dtype)
        total += tl.dot(state, sign, input_precision="ieee")
    c = tl.load(scale + t, mask=t < tokens, other=0.0)
    inside = (t[:, None] < tokens) & (n[None, :] < out)
    where = y + t[:, None].to(tl.int64) * y_stride + n[None, :]
    before = tl.load(where, mask=inside, other=0.0).to(tl.float32)
    tl.store(where, (before + c[:, None] * total).to(y.dtype.element_ty), mask=inside)
