"""Writes a low-rank mix that all requests use, for long, into the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import LinearBase

from adapters.coefficient import Coefficient, spread
from tta_serve.engine.worker.dense.dense_weights import DenseWeights, Folded
from tta_serve.engine.worker.dense.fold_decision import FoldDecision
from tta_serve.engine.worker.placed_expert import Shares
from tta_serve.engine.worker.sites import MixtureSite

SlotMix = Mapping[str, Coefficient]
_GUESS = 4e9
"""How many bytes of weights a second are written, until that has been timed."""


class Folding:
    """Decides step by step which low-rank mix is in the weights, and says what it changes there.

    Only mixes on linear layers, and on weights that can be written, are folded.
    """

    def __init__(self, dense: DenseWeights, sites: Mapping[str, MixtureSite]) -> None:
        """Start with nothing folded.

        Args:
            dense: Writes the weights.
            sites: Where low-rank experts add to the model.
        """
        self._dense = dense
        self._sites = sites
        self._shares: dict[str, Shares] = {}
        self._decision = FoldDecision[Any]()
        self._folded: Folded | None = None

    def add(self, digest: str, shares: Shares) -> None:
        """Take note of an expert that is ready."""
        self._shares[digest] = shares

    def remove(self, digest: str) -> None:
        """Forget it, if it is low-rank."""
        self._shares.pop(digest, None)

    def decide(self, mix: SlotMix | None, slots_s: float) -> Folded | None:
        """Return what is to be folded in a step, None for nothing.

        Args:
            mix: The mix that all of the step's tokens use, None if there is no such one.
            slots_s: What slots have cost in the last step, in seconds.
        """
        self._decision.note(slots_s)
        only = tuple(sorted(mix.items())) if mix and mix.keys() <= self._shares.keys() else None
        if self._decision.decide(only, 2 * self._find_cost(mix or {})) is None:
            self._folded = None
        elif self._folded is None or self._folded.mix != only:
            self._folded = self._prepare(mix or {}, only)
            if self._folded is None:
                self._decision.refuse()
        return self._folded

    def _find_cost(self, mix: SlotMix) -> float:
        """Return the seconds that it takes to write the weights of a mix."""
        sites = {name for digest in mix for name in self._shares.get(digest, ())}
        size = self._dense.count_bytes(_name(site) for site in sites)
        return size / (self._dense.bytes_s or _GUESS)

    def _prepare(self, mix: SlotMix, key: Any) -> Folded | None:
        """Return a mix to fold, None if it changes anything that cannot be written."""
        sites = {name for digest in mix for name in self._shares[digest]}
        names = {_name(site): site for site in sites}
        linear = all(isinstance(self._sites[site].layer, LinearBase) for site in sites)
        if not linear or not self._dense.keep_clean(names):
            return None
        shares = {digest: self._shares[digest] for digest in mix}

        def make(name: str) -> Tensor:
            return _merge(self._sites[names[name]], mix, shares)

        return Folded(key, frozenset(names), make)


def _name(site: str) -> str:
    return f"{site}.weight"


def _merge(site: MixtureSite, mix: SlotMix, shares: Mapping[str, Shares]) -> Tensor:
    """Return sum_k c_k b_k a_k of the weights stacked in a layer, on this rank, [out, in]."""
    total: Tensor | None = None
    for digest, coefficient in sorted(mix.items()):
        parts = shares[digest].get(site.name)
        (number,) = spread(coefficient, [site.place])
        if parts is None:
            continue
        width = next(part.a.shape[1] for part in parts if part is not None)
        rows = [
            number * (part.b.float() @ part.a.float()) if part else torch.zeros(size, width)
            for part, size in zip(parts, site.local_sizes, strict=True)
        ]
        whole = torch.cat(rows)
        total = whole if total is None else total + whole
    assert total is not None
    return total
