"""The bank: all experts' factors of one layer, stacked, so that any mix is a few dense products.

For a request with coefficients c, y = W x + sum_k c_k b_k a_k x. With A = [a_1; ...; a_K] and B =
[b_1 | ... | b_K],

    y = W x + B (c[expert] * (A x))          expert[j] = which expert row j of A belongs to

which is exact for mixed ranks: A and B are never averaged separately. A layer that stacks several
weights along its output (q, k and v; gate and up) has one A for all of them, and a B for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from adapters.bank.layer_gates import LayerGate, make_untrained_gate
from adapters.bank.token_gating import BankGates, Blocks, Sharing, build_blocks, compute_shares
from adapters.expert import LowRank


@dataclass(frozen=True)
class Bank:
    """The stacked factors of one layer, whose rows are grouped by weight and then by expert."""

    a: Tensor
    """[rows, in]."""
    b: tuple[Tensor, ...]
    """For each of the layer's weights, [its rows, its out], transposed, so that the product reads
    it in order."""
    rows: tuple[int, ...]
    """How many rows each weight has; none if no expert touches it."""
    outs: tuple[int, ...]
    """How many outputs each weight has."""
    expert: tuple[int, ...]
    """[rows], the index of each row's expert."""
    gates: Tensor | None = None
    """[2, rows], each row's g and the d of its expert; None where no gate is trained."""

    def add_(
        self,
        y: Tensor,
        x: Tensor,
        coefficients: Tensor | Sharing,
        whole: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Add B (coefficients * (A x)) to y in place, and return y.

        Args:
            y: [tokens, out].
            x: [tokens, in]; or [tokens], which of the inputs is 1 if all others are 0.
            coefficients: [tokens, rows], float32, those of each token's request; or, if some are
                shares that depend on A x, what is known of them. Factors must then be canonical.
            whole: Makes of a product with x the product with all inputs, where x is a part of them.
        """
        h = (
            torch.nn.functional.linear(x, self.a)
            if x.is_floating_point()
            else torch.nn.functional.embedding(x, self.a.t())
        )
        if isinstance(coefficients, Sharing):
            coefficients = compute_shares(whole(h) if whole else h, coefficients, self._trained)

        same = h.dtype == coefficients.dtype
        h = h.mul_(coefficients) if same else (h * coefficients).to(h.dtype)

        if len(self.b) == 1:
            return y.addmm_(h, self.b[0])
        for part, state, b in zip(
            y.split(self.outs, 1), h.split(self.rows, 1), self.b, strict=True
        ):
            if b.shape[0]:
                part.addmm_(state, b)
        return y

    @cached_property
    def blocks(self) -> Blocks:
        """Which expert and weight each row belongs to."""
        return build_blocks(self.rows, self.expert, self.a.device)

    @cached_property
    def _trained(self) -> BankGates | None:
        if self.gates is None:
            return None
        g, d = self.gates
        blocks = self.blocks
        return BankGates(g, d.new_zeros(blocks.of.shape[1]).scatter_(0, blocks.cell, d))

    def to(self, device: torch.device) -> "Bank":
        """Return the same bank on a device."""
        b = tuple(b.to(device) for b in self.b)
        gates = None if self.gates is None else self.gates.to(device)
        return replace(self, a=self.a.to(device), b=b, gates=gates)

    @property
    def nbytes(self) -> int:
        """How many bytes the factors take."""
        return self.a.nbytes + sum(b.nbytes for b in self.b)


def build_bank(
    weights: Sequence[Sequence[LowRank | None]],
    outs: Sequence[int],
    gates: Sequence[Sequence[LayerGate | None]] = (),
) -> Bank | None:
    """Return the bank of a layer; None if no expert touches it.

    Args:
        weights: For each of the layer's weights in their order, the factors of each expert; None
            for an expert that leaves the weight alone.
        outs: The output size of each weight.
        gates: In the same shape as `weights`, those of canonical factors; empty where none is
            trained.
    """
    present = [[(k, f) for k, f in enumerate(factors) if f is not None] for factors in weights]
    if not any(present):
        return None

    like = next(f for factors in present for _, f in factors).b
    b = [
        torch.cat([f.b.t() for _, f in part] or [like.new_empty(0, out)])
        for part, out in zip(present, outs, strict=True)
    ]
    expert = [k for part in present for k, f in part for _ in range(f.rank)]
    a = torch.cat([f.a for part in present for _, f in part])
    rows = tuple(len(part) for part in b)
    return Bank(a, tuple(b), rows, tuple(outs), tuple(expert), _gates(present, gates))


def _gates(
    present: Sequence[Sequence[tuple[int, LowRank]]], gates: Sequence[Sequence[LayerGate | None]]
) -> Tensor | None:
    """Return [2, rows], the g of each row and the d of its expert; None if no gate is trained."""
    if not any(map(any, gates)):
        return None
    of_each = [
        (own[k] or make_untrained_gate(f.rank))
        for part, own in zip(present, gates, strict=True)
        for k, f in part
    ]
    return torch.cat(
        [torch.stack([gate.g, torch.full_like(gate.g, gate.d)]) for gate in of_each], 1
    )
