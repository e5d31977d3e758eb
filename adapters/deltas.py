"""Deltas, which are what fine-tunes, experts and merges of them change, weight by weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from adapters.expert import Expert, LowRank


class Deltas(Protocol):
    """The change of every weight that an expert touches, read one weight at a time.

    Memory thus need not hold all of them. Weights have the names of the base's checkpoint, such as
    `model.layers.6.self_attn.q_proj.weight`.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        ...

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight, dense, float32, the caller's to overwrite.

        Raises KeyError if the weight is not touched.
        """
        ...

    def factors(self, weight: str) -> LowRank | None:
        """Return the same change as low-rank factors; None where it is not known as such."""
        ...


class ExpertDeltas(Deltas, Protocol):
    """The deltas of an expert of a library."""

    @property
    def digest(self) -> str:
        """The expert's digest."""
        ...


@dataclass(frozen=True)
class LowRankDeltas:
    """The deltas of an expert that is known by its factors."""

    expert: Expert

    @property
    def digest(self) -> str:
        """The expert's digest."""
        return self.expert.digest

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        return {
            f"{name}.weight": (f.b.shape[0], f.a.shape[1])
            for name, f in self.expert.factors.items()
        }

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight, dense, float32."""
        return self.factors(weight).dense()

    def factors(self, weight: str) -> LowRank:
        """Return the expert's own factors of one weight."""
        return self.expert.factors[weight.removesuffix(".weight")]
