"""A one-bit expert in a model of vLLM: a tensor-parallel rank's share of its signs and vectors."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import RowParallelLinear

from adapters.bank.sign_bank import Signs
from adapters.coefficient import EMBEDDING
from adapters.errors import ExpertError
from adapters.expert import LowRank
from adapters.library.integrity import SealedDeltas
from tta_serve.engine.worker.norm_sites import NormSite
from tta_serve.engine.worker.placed_expert import PlacedExpert, rename_weights, shard_factor
from tta_serve.engine.worker.sites import MixtureSite, explain_no_site

Pack = Callable[[MixtureSite, Tensor], Tensor]
"""Keeps a site's signs, [out, in], True for +, as its bank reads them."""

_VECTORS = ("weight", "bias")
"""The vectors of a norm, in the order of `NormSite.vectors`."""


@dataclass(frozen=True)
class OneBitSites:
    """Where in a model of vLLM one-bit experts may add."""

    model: nn.Module
    sites: Mapping[str, MixtureSite]
    """The layers whose matrices and biases they may change, by name."""
    norms: Mapping[str, NormSite]
    """The norms, by name."""
    pack: Pack
    """How signs are kept."""

    def place(self, name: str, deltas: SealedDeltas, unserved: Collection[str]) -> PlacedExpert:
        """Return an expert on this rank.

        Args:
            name: The expert's.
            deltas: What it changes, by the base's own names.
            unserved: The weights that are left out, as its report says.

        Raises:
            ExpertError: It changes something else that is no site of this base, or does not fit its
                shape, or nothing at all.
        """
        served = [weight for weight in deltas.shapes if weight not in unserved]
        if not served:
            raise ExpertError(f"expert {name!r} changes nothing that slots can serve")
        names = rename_weights(self.model, served)
        if len(set(names)) < len(names):
            raise ExpertError(f"expert {name!r} changes a weight of this base under two names")
        found = _Placing(self, name, deltas)
        for weight, renamed in zip(served, names, strict=True):
            found.add(weight, renamed)
        return found.finish()


@dataclass
class _Placing:
    """One expert while it is placed, a weight at a time."""

    at: OneBitSites
    name: str
    deltas: SealedDeltas
    signs: dict[str, dict[int, Signs]] = field(default_factory=lambda: defaultdict(dict))
    vectors: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    norms: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parts = {w: (s, i) for s in self.at.sites.values() for i, w in enumerate(s.weights)}

    def add(self, weight: str, renamed: str) -> None:
        """Place the change of a weight that vLLM calls by another name."""
        module, _, leaf = renamed.rpartition(".")
        if module in self._parts and leaf == "weight":
            self._add_matrix(weight, *self._parts[module])
        elif module in self._parts and leaf == "bias":
            self._add_bias(weight, *self._parts[module])
        elif module in self.at.norms and leaf in _VECTORS[: self.at.norms[module].vectors]:
            self._add_norm(weight, self.at.norms[module], _VECTORS.index(leaf))
        else:
            why = explain_no_site(self.at.model, module)
            raise ExpertError(
                f"expert {self.name!r}: {weight} {why}; if it was added by an earlier release, add"
                " it anew"
            )

    def _add_matrix(self, weight: str, site: MixtureSite, part: int) -> None:
        shape = site.sizes[part], site.inputs
        embeds = site.place == EMBEDDING
        self._check(weight, shape[::-1] if embeds else shape)
        packed = self.deltas.signs(weight)
        plus = packed.unpack()
        if not embeds:
            # Whatever a rank has of factors, it has of the rows and columns that they stand for.
            rows, columns = torch.arange(len(plus)), torch.arange(plus.shape[1])
            mine = shard_factor(site, part, LowRank(columns.unsqueeze(0), rows.unsqueeze(1)))
            if mine.a.shape[1] < plus.shape[1] or not mine.b.flatten().equal(rows):
                plus = plus[mine.b.flatten()][:, mine.a.flatten()]
        self.signs[site.name][part] = Signs(self.at.pack(site, plus), packed.scale)

    def _add_bias(self, weight: str, site: MixtureSite, part: int) -> None:
        self._check(weight, (site.sizes[part],))
        layer = site.layer
        if isinstance(layer, RowParallelLinear) and layer.tp_rank > 0:
            return  # The first rank adds it before all are summed up.
        bias = self.deltas.delta(weight)
        mine = shard_factor(site, part, LowRank(torch.zeros(1, site.inputs), bias.unsqueeze(1)))
        self.vectors[site.name][part] = mine.b.flatten()

    def _add_norm(self, weight: str, site: NormSite, vector: int) -> None:
        self._check(weight, (site.size,))
        norm = self.norms.setdefault(site.name, torch.zeros(site.vectors, site.size))
        norm[vector] = self.deltas.delta(weight)

    def _check(self, weight: str, wanted: tuple[int, ...]) -> None:
        got = self.deltas.shapes[weight]
        if got != wanted:
            raise ExpertError(
                f"expert {self.name!r}: {weight} is for a weight of {got}, this base has {wanted}"
            )

    def finish(self) -> PlacedExpert:
        """Return all that was placed."""
        sites = self.at.sites
        return PlacedExpert(
            shares={},
            reads={},
            signs={
                name: tuple(parts.get(i) for i in range(len(sites[name].weights)))
                for name, parts in self.signs.items()
            },
            biases={
                name: torch.cat(
                    [
                        parts.get(i, torch.zeros(size))
                        for i, size in enumerate(sites[name].local_sizes)
                    ]
                ).unsqueeze(0)
                for name, parts in self.vectors.items()
            },
            norms=self.norms,
        )
