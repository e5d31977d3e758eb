"""How much of the base's own states lies in what each resident expert reads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.canonical import canonical
from adapters.coefficient import Place
from adapters.expert import LowRank
from tta_serve.engine.observer import Observer, Running


class Spectrum(NamedTuple):
    """Of a delta U S V^T. vt: [rank, in], orthonormal rows   s: [rank], largest first"""

    vt: Tensor
    s: Tensor


class Stack(NamedTuple):
    """The spectra of one place below each other.

    experts: digests of those that change the place   first: [experts], of each the first row
    of: [rows, experts], 1 where a row is an expert's, else 0
    """

    experts: tuple[str, ...]
    spectra: Spectrum
    first: Tensor
    of: Tensor


class Sums(NamedTuple):
    """At one place, what router.policy.Activations says. totals: over tokens, [3, experts] of arrow, spectr and residual"""

    stack: Stack
    tokens: int
    totals: Tensor
    inputs: Tensor
    norm: Tensor


class Scores(NamedTuple):
    """experts: digests of all that were resident"""

    experts: tuple[str, ...]
    sums: dict[Place, Sums]

    @property
    def seen(self) -> int:
        return next((sums.tokens for sums in self.sums.values()), 0)


class Watch(Observer[Scores]):
    """Activations: projects the inputs of attentions and MLPs on the right singular vectors of all resident experts.

    One product for each place. The vectors are computed when a probe first needs them, and kept, float32: in all as many rows
    as the experts have ranks, for each place.
    """

    def __init__(self, names: Mapping[Place, str], device: torch.device) -> None:
        """names: of the linear layer whose input is seen at each place, in the model's order"""
        super().__init__()
        self._names, self._device = names, device
        self._reads: dict[str, Mapping[Place, LowRank]] = {}
        self._experts: tuple[str, ...] = ()
        self._spectra: dict[Place, dict[str, Spectrum]] = {place: {} for place in names}
        self._stacks: dict[Place, Stack | None] = {}

    def add(self, digest: str, reads: Mapping[Place, LowRank]) -> None:
        """An expert is resident. reads: of what it does at each place, as `attach.Placed` has it"""
        self._reads[digest] = reads
        self._changed()

    def remove(self, digest: str) -> None:
        del self._reads[digest]
        for known in self._spectra.values():
            known.pop(digest, None)
        self._changed()

    def _changed(self) -> None:
        self._experts = tuple(self._reads)
        self._stacks.clear()

    def _add(self, before: Scores | None, x: Tensor, running: Running, place: Place | None) -> Scores:
        assert place is not None
        # Of a probe that saw other experts in an earlier step all is dropped; then it has not seen all of its tokens.
        scores = before if before is not None and before.experts is self._experts else Scores(self._experts, {})
        if place not in self._stacks:
            self._stacks[place] = self._stacked(place)
        stack = self._stacks[place]
        if stack is not None:
            scores.sums[place] = _summed(scores.sums.get(place), stack, x.float())
        return scores

    def _stacked(self, place: Place) -> Stack | None:
        """None if no expert changes the place."""
        known = self._spectra[place]
        for digest, reads in self._reads.items():
            if place in reads and digest not in known:
                known[digest] = self._spectrum(reads[place])
        present = {digest: spectrum for digest, spectrum in known.items() if spectrum.s[0] > 0}
        if not present:
            return None
        ranks = torch.tensor([len(spectrum.s) for spectrum in present.values()], device=self._device)
        whole = Spectrum(*(torch.cat(parts) for parts in zip(*present.values(), strict=True)))
        pieces = (part.split(ranks.tolist()) for part in whole)
        known |= zip(present, (Spectrum(*parts) for parts in zip(*pieces, strict=True)), strict=True)  # views: kept once
        of = torch.eye(len(ranks), device=self._device).repeat_interleave(ranks, 0)
        return Stack(tuple(present), whole, ranks.cumsum(0) - ranks, of)

    def _spectrum(self, factor: LowRank) -> Spectrum:
        vt, us = canonical(factor)
        return Spectrum(vt.to(self._device), us.norm(dim=0).to(self._device))

    def _read(self, kept: Sequence[Scores], tokens: Sequence[int]) -> dict[str, Any]:
        """The fields of router.policy.Activations."""
        [(experts, sums)] = kept
        places = [place for place in self._names if place in sums]
        table = torch.full((4, len(experts), len(places)), torch.nan)
        for column, place in enumerate(places):
            stack, seen, totals, _, norm = sums[place]
            here = [experts.index(digest) for digest in stack.experts]
            table[:, here, column] = torch.cat([totals / seen, norm.unsqueeze(0)]).cpu()
        names = [self._names[place] for place in places]
        inputs = [float(sums[place].inputs) / len(tokens) for place in places]
        scores = zip(("arrow", "spectr", "residual", "norm"), table.tolist(), strict=True)
        return {"experts": experts, "sites": names, "inputs": inputs, **dict(scores)}


def _summed(before: Sums | None, stack: Stack, x: Tensor) -> Sums:
    """x: [tokens, in]"""
    along = x @ stack.spectra.vt.t()
    squares, lengths = along.square() @ stack.of, x.square().sum(1, keepdim=True)
    residual = (lengths - squares).clamp_(min=0).sqrt_()
    totals = torch.stack([along[:, stack.first].abs().sum(0), squares.sqrt().sum(0), residual.sum(0)])
    inputs, norm = lengths.sqrt().sum(), ((along[-1] * stack.spectra.s).square() @ stack.of).sqrt()
    if before is None:
        return Sums(stack, len(x), totals, inputs, norm)
    return Sums(stack, before.tokens + len(x), before.totals + totals, before.inputs + inputs, norm)
