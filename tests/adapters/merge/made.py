"""Deltas made for a test, dense and low-rank."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert, LowRank


@dataclass(frozen=True)
class Held:
    """Dense deltas, or a base, held in memory; `reads` counts how often each weight was asked for."""

    weights: dict[str, Tensor]
    reads: Counter[str] = field(default_factory=Counter)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.weights.items()}

    def delta(self, weight: str) -> Tensor:
        self.reads[weight] += 1
        return self.weights[weight].clone()

    def factors(self, weight: str) -> None:
        return None

    def read(self, weight: str) -> Tensor:
        return self.delta(weight)


def stack(*shape: int, seed: int = 0) -> Tensor:
    """Random deltas, [experts, *shape], no two entries of one magnitude."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held(deltas: Tensor, weight: str = "model.layers.0.mlp.up_proj.weight") -> list[Held]:
    """One expert for each of deltas, [experts, *shape], that touches one weight."""
    return [Held({weight: delta}) for delta in deltas]


def low_rank(seed: int, ranks: Iterable[int] = (2, 3), out: int = 10, in_: int = 8) -> LowRankDeltas:
    """An expert of factors of such ranks in the up projections of layers 0, 1, ...; none where the rank is 0."""
    g = torch.Generator().manual_seed(seed)
    factors = {
        f"model.layers.{layer}.mlp.up_proj": LowRank(torch.randn(r, in_, generator=g), torch.randn(out, r, generator=g))
        for layer, r in enumerate(ranks)
        if r
    }
    return LowRankDeltas(Expert(f"expert {seed}", factors))


def dense(expert: LowRankDeltas) -> Held:
    """The same expert without its factors."""
    return Held({weight: expert.delta(weight) for weight in expert.shapes})
