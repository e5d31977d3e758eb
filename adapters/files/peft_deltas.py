"""Adapters that are more than factors, as their exact change of the base they were trained on."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapters.expert import LowRank
from adapters.files.checkpoint import Checkpoint
from adapters.files.peft_reader import AdapterParts, is_embedding


@dataclass(frozen=True)
class AdapterDeltas:
    """The deltas merged - base of an adapter, float32, as PEFT merges it.

    A weight W of the base, or the adapter's own copy of it, becomes W + b a + bias; with DoRA
    (arXiv 2402.09353) of magnitude m it becomes m (W + b a) / ||W + b a||, the norm that of each
    row; of an embedding, that of each column.
    """

    base: Checkpoint
    parts: AdapterParts

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        parts = self.parts
        found = {weight: (len(low.b), low.a.shape[1]) for weight, low in parts.factors.items()}
        return {
            **found,
            **{weight: tuple(bias.shape) for weight, bias in parts.biases.items()},
            **{weight: copy.shape for weight, copy in parts.copies.items()},
        }

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight, dense, float32.

        Raises KeyError if the weight is not touched.
        """
        if low_rank := self.factors(weight):
            return low_rank.dense()
        parts = self.parts
        base = self.base.read(weight).float()
        copy = parts.copies.get(weight)
        merged = copy.read() if copy else base.clone()
        if weight in parts.factors:
            merged += parts.factors[weight].dense()
        if weight in parts.biases:
            merged += parts.biases[weight]
        if (magnitude := parts.magnitudes.get(weight)) is not None:
            axis = 0 if is_embedding(weight) else 1
            norm = torch.linalg.norm(merged, dim=axis)
            merged *= (magnitude / norm).unsqueeze(axis)
        return merged.sub_(base)

    def factors(self, weight: str) -> LowRank | None:
        """Return the factors of a weight that nothing else changes; None of others."""
        parts = self.parts
        if weight in parts.magnitudes or weight in parts.biases or weight in parts.copies:
            return None
        return parts.factors[weight]
