"""How much of the base's own states lies in what each resident expert reads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.coefficient import Place
from adapters.expert import LowRank
from adapters.low_rank import make_canonical
from tta_serve.engine import wire
from tta_serve.engine.worker.probes.observer import ProbeObserver, RunningProbe


class Spectrum(NamedTuple):
    """The singular values and right singular vectors of a delta U S V^T."""

    vt: Tensor
    """[rank, in], orthonormal rows."""
    s: Tensor
    """[rank], largest first."""


class SpectrumStack(NamedTuple):
    """The spectra of all experts that change one place, below each other."""

    experts: tuple[str, ...]
    """The digests of those experts."""
    spectra: Spectrum
    """Their spectra: vt [rows, in] and s [rows]."""
    first: Tensor
    """[experts], the first row of each."""
    of: Tensor
    """[rows, experts], 1 where a row is an expert's, else 0."""


class PlaceSums(NamedTuple):
    """The sums, over the tokens seen at one place, of what `router.probing.Activations` says."""

    stack: SpectrumStack
    """The spectra of the place."""
    tokens: int
    """How many tokens were summed over."""
    totals: Tensor
    """[3, experts] of arrow, spectr and residual."""
    inputs: Tensor
    """The sum of the inputs' norms."""
    norm: Tensor
    """[experts], ||S V^T x|| at the last token."""


class ActivationSums(NamedTuple):
    """What is kept of one probe: its sums at every place."""

    experts: tuple[str, ...]
    """The digests of all experts that were resident."""
    sums: dict[Place, PlaceSums]
    """The sums at each place that an expert changes."""

    @property
    def seen(self) -> int:
        """How many of the probe's tokens passed by."""
        return next((sums.tokens for sums in self.sums.values()), 0)


class ActivationObserver(ProbeObserver[ActivationSums]):
    """Projects the inputs of attentions and MLPs on what all resident experts read.

    One product for each place projects on the right singular vectors of all experts. The vectors
    are computed when a probe first needs them, and kept, float32: in all as many rows as the
    experts have ranks, for each place.
    """

    def __init__(self, names: Mapping[Place, str], device: torch.device) -> None:
        """Start without experts.

        Args:
            names: The name of the linear layer whose input is seen at each place, in the model's
                order.
            device: Where the vectors are kept.
        """
        super().__init__()
        self._names = names
        self._device = device
        self._reads: dict[str, Mapping[Place, LowRank]] = {}
        self._experts: tuple[str, ...] = ()
        self._spectra: dict[Place, dict[str, Spectrum]] = {place: {} for place in names}
        self._stacks: dict[Place, SpectrumStack | None] = {}

    def add(self, digest: str, reads: Mapping[Place, LowRank]) -> None:
        """Take note that a low-rank expert is resident.

        Args:
            digest: The expert's.
            reads: What it does at each place, as `PlacedExpert.reads` has it.
        """
        self._reads[digest] = reads
        self._change_experts()

    def remove(self, digest: str) -> None:
        """Take note that an expert is gone."""
        self._reads.pop(digest, None)
        for known in self._spectra.values():
            known.pop(digest, None)
        self._change_experts()

    def _change_experts(self) -> None:
        self._experts = tuple(self._reads)
        self._stacks.clear()

    def _add(
        self,
        before: ActivationSums | None,
        x: Tensor,
        running: RunningProbe,
        place: Place | None,
    ) -> ActivationSums:
        assert place is not None
        # Of a probe that saw other experts in an earlier step all is dropped; then it has not seen
        # all of its tokens.
        same_experts = before is not None and before.experts is self._experts
        kept = before if before is not None and same_experts else ActivationSums(self._experts, {})
        if place not in self._stacks:
            self._stacks[place] = self._stack(place)
        stack = self._stacks[place]
        if stack is not None:
            kept.sums[place] = _add_tokens(kept.sums.get(place), stack, x.float())
        return kept

    def _stack(self, place: Place) -> SpectrumStack | None:
        """Return the spectra of a place, None if no expert changes it."""
        # Compute the spectra that are not known yet.
        known = self._spectra[place]
        for digest, reads in self._reads.items():
            if place in reads and digest not in known:
                known[digest] = self._spectrum(reads[place])
        present = {digest: spectrum for digest, spectrum in known.items() if spectrum.s[0] > 0}
        if not present:
            return None

        # Put them below each other.
        ranks = torch.tensor(
            [len(spectrum.s) for spectrum in present.values()], device=self._device
        )
        whole = Spectrum(*(torch.cat(parts) for parts in zip(*present.values(), strict=True)))

        # Keep views of the whole in place of the pieces, so that each is kept once.
        pieces = (part.split(ranks.tolist()) for part in whole)
        views = (Spectrum(*parts) for parts in zip(*pieces, strict=True))
        known |= zip(present, views, strict=True)

        of = torch.eye(len(ranks), device=self._device).repeat_interleave(ranks, 0)
        return SpectrumStack(tuple(present), whole, ranks.cumsum(0) - ranks, of)

    def _spectrum(self, factor: LowRank) -> Spectrum:
        vt, us = make_canonical(factor)
        return Spectrum(vt.to(self._device), us.norm(dim=0).to(self._device))

    def _read(self, kept: Sequence[ActivationSums], tokens: Sequence[int]) -> wire.ProbeActivations:
        [(experts, sums)] = kept
        places = [place for place in self._names if place in sums]
        table = torch.full((4, len(experts), len(places)), torch.nan)
        for column, place in enumerate(places):
            at_place = sums[place]
            here = [experts.index(digest) for digest in at_place.stack.experts]
            means = at_place.totals / at_place.tokens
            table[:, here, column] = torch.cat([means, at_place.norm.unsqueeze(0)]).cpu()

        arrow, spectr, residual, norm = table.tolist()
        return wire.ProbeActivations(
            experts=experts,
            sites=[self._names[place] for place in places],
            arrow=arrow,
            spectr=spectr,
            norm=norm,
            residual=residual,
            inputs=[float(sums[place].inputs) / len(tokens) for place in places],
        )


def _add_tokens(before: PlaceSums | None, stack: SpectrumStack, x: Tensor) -> PlaceSums:
    """Return the sums of a place with the next tokens added.

    Args:
        before: The sums so far.
        stack: The spectra of the place.
        x: [tokens, in], the inputs of the next tokens.
    """
    along = x @ stack.spectra.vt.t()
    squares = along.square() @ stack.of
    lengths = x.square().sum(1, keepdim=True)
    residual = (lengths - squares).clamp_(min=0).sqrt_()
    totals = torch.stack(
        [along[:, stack.first].abs().sum(0), squares.sqrt().sum(0), residual.sum(0)]
    )
    inputs = lengths.sqrt().sum()
    norm = ((along[-1] * stack.spectra.s).square() @ stack.of).sqrt()
    if before is None:
        return PlaceSums(stack, len(x), totals, inputs, norm)
    return PlaceSums(
        stack, before.tokens + len(x), before.totals + totals, before.inputs + inputs, norm
    )
