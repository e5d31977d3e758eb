"""The bank of the vectors that experts add to a layer, such as a bias or the weight of a norm."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VectorBank:
    """What each expert adds to one vector of the base, or to several of a size."""

    vectors: Tensor
    """[experts, vectors, size], float32."""
    experts: tuple[int, ...]
    """The column of each expert."""

    def mix(self, coefficients: Tensor) -> Tensor:
        """Return sum_k c_k d_k for each token, [vectors, tokens, size], float32.

        Args:
            coefficients: [tokens, experts], float32.
        """
        return coefficients @ self.vectors.transpose(0, 1)

    @property
    def nbytes(self) -> int:
        """The bytes of the vectors."""
        return self.vectors.nbytes


def build_vector_bank(
    vectors: Sequence[Tensor | None], experts: Sequence[int], device: torch.device
) -> VectorBank | None:
    """Return the bank of a layer; None if no expert has vectors for it.

    Args:
        vectors: Those of each expert, [vectors, size] or None.
        experts: The experts' columns.
        device: Where the bank is kept.
    """
    present = {k: v for k, v in zip(experts, vectors, strict=True) if v is not None}
    if not present:
        return None
    stacked = torch.stack([*present.values()]).to(device, torch.float32)
    return VectorBank(stacked, tuple(present))
