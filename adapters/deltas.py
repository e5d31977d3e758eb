"""What an expert changes, weight by weight: the one form in which fine-tunes, experts and merges of them are handled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from adapters.expert import Expert, LowRank


class Deltas(Protocol):
    """The change of every weight that an expert touches, read one weight at a time, so that memory holds only some.

    Weights have the names of the base's checkpoint, such as `model.layers.6.self_attn.q_proj.weight`.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        ...

    def delta(self, weight: str) -> Tensor:
        """The change of one weight, dense, float32, the caller's to overwrite. Raises KeyError if it is not touched."""
        ...

    def factors(self, weight: str) -> LowRank | None:
        """The same change as low-rank factors, None where it is not known as such."""
        ...


@dataclass(frozen=True)
class LowRankDeltas:
    """The deltas of an expert that is known by its factors."""

    expert: Expert

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (f.b.shape[0], f.a.shape[1]) for name, f in self.expert.factors.items()}

    def delta(self, weight: str) -> Tensor:
        return self.factors(weight).dense()

    def factors(self, weight: str) -> LowRank:
        return self.expert.factors[weight.removesuffix(".weight")]
