"""An expert that slots can serve: low-rank factors of the base's modules, and their digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.errors import ExpertError


class LowRank(NamedTuple):
    """A low-rank delta `b @ a` of one weight."""

    a: Tensor
    """[rank, in]."""
    b: Tensor
    """[out, rank], the LoRA scale already in b."""

    @property
    def rank(self) -> int:
        """How many rows a has and columns b."""
        return self.a.shape[0]

    def dense(self) -> Tensor:
        """Return the delta as one matrix, [out, in], float32."""
        return self.b.float() @ self.a.float()


@dataclass(frozen=True)
class Expert:
    """A specialist of the base, with W_m + b_m @ a_m for every module m that it touches.

    Raises ExpertError if a factor is empty, mis-shaped or not finite.
    """

    name: str
    factors: Mapping[str, LowRank]
    """By the base's own (Hugging Face) module names, such as `model.layers.6.self_attn.q_proj`,
    float32."""

    def __post_init__(self) -> None:
        if not self.factors:
            raise ExpertError(f"expert {self.name!r} holds no low-rank factors")
        for module, factor in self.factors.items():
            _check(self.name, module, factor)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and float32 values of all factors.

        Experts of equal content have equal digests, whatever they are called.
        """
        sha = hashlib.sha256()
        for module in sorted(self.factors):
            for part in self.factors[module]:
                sha.update(f"{module}|{tuple(part.shape)}|".encode())
                sha.update(part.float().contiguous().numpy().tobytes())
        return sha.hexdigest()


def _check(expert: str, module: str, factor: LowRank) -> None:
    """Raise ExpertError if a factor is empty, mis-shaped or not finite."""
    a, b = factor
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        raise ExpertError(
            f"expert {expert!r}: {module} has A {tuple(a.shape)} and B {tuple(b.shape)}, wanted"
            " [rank, in] and [out, rank]"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ExpertError(f"expert {expert!r}: {module} holds NaN or infinite values")
