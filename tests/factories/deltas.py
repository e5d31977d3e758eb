"""Deltas and factors made for a test, dense and low-rank."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert, LowRank


@dataclass(frozen=True)
class DenseDeltas:
    """Dense deltas, or a base, held in memory."""

    weights: dict[str, Tensor]
    reads: Counter[str] = field(default_factory=Counter)
    """How often each weight was asked for."""

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


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return random deltas, [experts, *shape], no two entries of one magnitude."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_dense(
    deltas: Tensor, weight: str = "model.layers.0.mlp.up_proj.weight"
) -> list[DenseDeltas]:
    """Return one expert for each of deltas, [experts, *shape], that touches one weight."""
    return [DenseDeltas({weight: delta}) for delta in deltas]


def make_factor(rank: int, out: int, in_: int, seed: int) -> LowRank:
    """Return random factors of one weight, [out, in_]."""
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, in_, generator=g), torch.randn(out, rank, generator=g))


def make_low_rank(
    seed: int, ranks: Iterable[int] = (2, 3), out: int = 10, in_: int = 8
) -> LowRankDeltas:
    """Return an expert of the up projections of layers 0, 1, ...

    Its factors there have such ranks, and it leaves a layer of rank 0 alone.
    """
    g = torch.Generator().manual_seed(seed)
    factors = {
        f"model.layers.{layer}.mlp.up_proj": LowRank(
            torch.randn(r, in_, generator=g), torch.randn(out, r, generator=g)
        )
        for layer, r in enumerate(ranks)
        if r
    }
    return LowRankDeltas(Expert(f"expert {seed}", factors))


def forget_factors(expert: LowRankDeltas) -> DenseDeltas:
    """Return the same expert without its factors."""
    return DenseDeltas({weight: expert.delta(weight) for weight in expert.shapes})
