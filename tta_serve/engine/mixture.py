"""The seam in vLLM's layers: a linear layer's own product, then the delta of each token's mix."""

from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm.platforms import current_platform

from adapters.bank import Bank
from tta_serve.engine.attach import Site
from tta_serve.engine.observer import Sees
from tta_serve.engine.sparse import SparseBank
from tta_serve.engine.step import StepState


class MixtureMethod:
    """Stands where a linear layer keeps its quant method: the layer's own product, then the delta of each token's mix.

    This one seam serves every kind of linear layer, quantised or not: the layer shards, gathers and reduces as always, and
    in a row-parallel layer the delta joins the partial sums before they are reduced.

    apart: a bank for the step's gated tokens alone, which a sparse one does not serve
    """

    def __init__(self, site: Site, state: StepState, observers: Sequence[Sees], *, traced: bool) -> None:
        """observers: who sees the layer's inputs   traced: whether the model is compiled"""
        self.inner = site.layer.quant_method
        self.place = site.place
        self.state = state
        self.observers = observers
        self.whole = site.whole
        self.traced = traced
        self.bank: Bank | SparseBank | None = None
        self.apart: Bank | SparseBank | None = None
        self.number = next(_numbers)
        _METHODS[self.number] = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = self.inner.apply(layer, x, bias)
        if self.traced:
            torch.ops.tta_serve.add_delta(y, x, self.number)
        elif self.bank is not None or self.apart is not None or self.observers:
            self.add_delta(y, x)
        return y

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        """y += the delta. y: [..., out]   x: [..., in]"""
        state = self.state
        if x.dim() != 2:
            x = x.view(-1, x.shape[-1])
        for observer in self.observers:
            if observer.looking:
                observer.observe(x, state.token_slots, self.place)
        bank = self.bank
        if bank is not None and state.active:
            if isinstance(bank, SparseBank):
                bank.add_(y, x, state.uses(self.place, x.shape[0]))
            else:
                self._add_dense(bank, y.view(-1, y.shape[-1]), x)
        if isinstance(self.apart, Bank) and state.apart is not None:
            self._add_apart(self.apart, y.view(-1, y.shape[-1]), x, state.apart)

    def _add_apart(self, bank: Bank, y: Tensor, x: Tensor, tokens: Tensor) -> None:
        if len(tokens) == len(x):
            self._add_dense(bank, y, x)
        else:
            mine = self._add_dense(bank, y.index_select(0, tokens), x.index_select(0, tokens))
            y.index_copy_(0, tokens, mine)

    def _add_dense(self, bank: Bank, y: Tensor, x: Tensor) -> Tensor:
        return bank.add_(y, x, self.state.dense(self.place, bank, x.shape[0]), self.whole)


# A compiled model knows its sites by number: what a site does in a step is not for the compiler to see.
_METHODS: WeakValueDictionary[int, MixtureMethod] = WeakValueDictionary()
_numbers = count()


def _add_delta(y: Tensor, x: Tensor, number: int) -> None:
    _METHODS[number].add_delta(y, x)


_library = torch.library.Library("tta_serve", "FRAGMENT")
_library.define("add_delta(Tensor(a!) y, Tensor x, int number) -> ()")
_library.impl("add_delta", _add_delta, current_platform.dispatch_key)
_library._register_fake("add_delta", lambda y, x, number: None)
