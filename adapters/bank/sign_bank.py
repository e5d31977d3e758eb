"""The bank of one-bit experts of a layer: signs that are multiplied by as they are, and scales.

For a token with coefficients c, y = W x + sum_k c_k s_k (S_k x), where S_k has a sign for each
weight of the layer and s_k a scale (BitDelta, arXiv 2402.10193). No two experts are added up
beforehand, so tokens of one batch can have any mixes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 1 << 22  # the signs that are numbers at one time


class Signs(NamedTuple):
    """The change of one weight by a one-bit expert."""

    bits: Tensor
    """[out, in / 8] uint8, 1 for +, of the first input the highest bit; or, for a bank of another
    kind, as that keeps them."""
    scale: float
    """s."""

    @property
    def nbytes(self) -> int:
        """The bytes of the signs."""
        return self.bits.nbytes


@dataclass(frozen=True)
class SignBank:
    """All one-bit experts of one layer, whose signs it does not copy."""

    weights: tuple[tuple[Signs | None, ...], ...]
    """For each of the layer's weights, what each expert changes."""
    outs: tuple[int, ...]
    """How many outputs each weight has."""
    experts: tuple[int, ...]
    """The column of each expert."""

    def add_(self, y: Tensor, x: Tensor, coefficients: Tensor) -> Tensor:
        """Add sum_k c_k s_k (S_k x) to y in place, and return y.

        Args:
            y: [tokens, out].
            x: [tokens, in]; or [tokens], which of the inputs is 1 if all others are 0. The signs
                are then those of the transposed weight.
            coefficients: [tokens, experts], float32, those of each token's request.
        """
        for part, experts in zip(y.split(self.outs, 1), self.weights, strict=True):
            for c, signs in zip(coefficients.unbind(1), experts, strict=True):
                if signs is not None:
                    _add(part, x, (c * signs.scale).unsqueeze(1), signs.bits)
        return y

    @property
    def nbytes(self) -> int:
        """The bytes of the signs."""
        return sum(s.nbytes for experts in self.weights for s in experts if s is not None)


def pack_signs(plus: Tensor) -> Tensor:
    """Return signs eight to a byte, as `SignBank` reads them.

    Args:
        plus: [out, in], which of them are +.
    """
    padded = torch.nn.functional.pad(plus.byte(), (0, -plus.shape[1] % 8)).view(len(plus), -1, 8)
    return (padded << _shifts(plus.device)).sum(-1, dtype=torch.uint8)


def unpack_signs(bits: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    """Return signs as 1 and -1.

    Args:
        bits: [out, in / 8].
        inputs: in.
        dtype: Of the result.
    """
    plus = (bits.unsqueeze(-1) >> _shifts(bits.device)) & 1
    return plus.flatten(1)[:, :inputs].to(dtype).mul_(2).sub_(1)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def _add(y: Tensor, x: Tensor, c: Tensor, bits: Tensor) -> None:
    """Add c (S x) to y, of one expert.

    Args:
        y: [tokens, out].
        x: [tokens, in] or [tokens].
        c: [tokens, 1].
        bits: As `Signs` has them.
    """
    if not x.is_floating_point():
        rows = unpack_signs(bits.index_select(0, x), y.shape[1], torch.float32)
        y += (rows * c).to(y.dtype)
        return
    scaled = (x * c).to(x.dtype)
    height = max(1, _BLOCK // x.shape[1])
    for part, block in zip(y.split(height, 1), bits.split(height), strict=True):
        part.addmm_(scaled, unpack_signs(block, x.shape[1], x.dtype).t())
