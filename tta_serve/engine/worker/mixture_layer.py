"""The seam in vLLM's linear layers, where y += B (c * (A x)) is added for each token's mix."""

from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm.platforms import current_platform

from adapters.bank.bank import Bank
from tta_serve.engine.worker.cpu.sparse_bank import SparseBank
from tta_serve.engine.worker.probes.observer import InputObserver
from tta_serve.engine.worker.sites import LinearSite
from tta_serve.engine.worker.step_state import StepState


class MixtureMethod:
    """A linear layer's own product, and then the delta of each token's mix.

    It stands where the layer keeps its quant method. This one seam serves every kind of linear
    layer, quantised or not: the layer shards, gathers and reduces as always, and in a row-parallel
    layer the delta joins the partial sums before they are reduced.

    Attributes:
        inner: The layer's own quant method.
        bank: The bank of the experts in use, None where they leave the layer alone.
        apart: A bank for the step's gated tokens alone, which a sparse one does not serve.
        number: How a compiled model knows the site.
    """

    def __init__(
        self,
        site: LinearSite,
        state: StepState,
        observers: Sequence[InputObserver],
        *,
        traced: bool,
    ) -> None:
        """Stand in for the quant method of a site's layer.

        Args:
            site: The layer.
            state: What the tokens of a step use.
            observers: Who sees the layer's inputs.
            traced: Whether the model is compiled.
        """
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
        """Add the delta of each token's mix to y, in place.

        Args:
            y: [..., out], the layer's own product.
            x: [..., in], the layer's input.
        """
        state = self.state
        if x.dim() != 2:
            x = x.view(-1, x.shape[-1])

        # Show the input to whoever observes it; routing may decide here what the bank adds.
        for observer in self.observers:
            if observer.looking:
                observer.observe(x, state.token_slots, self.place)

        # Add the delta of all tokens, or, beside a sparse bank, of those that are not gated.
        bank = self.bank
        if bank is not None and state.active:
            if isinstance(bank, SparseBank):
                bank.add_(y, x, state.uses(self.place, x.shape[0]))
            else:
                self._add_dense(bank, y.view(-1, y.shape[-1]), x)

        # Add that of gated tokens, which only dense banks serve.
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


# A compiled model knows its sites by number: what a site does in a step is not for the compiler to
# see.
_METHODS: WeakValueDictionary[int, MixtureMethod] = WeakValueDictionary()
_numbers = count()


def _add_delta(y: Tensor, x: Tensor, number: int) -> None:
    _METHODS[number].add_delta(y, x)


_library = torch.library.Library("tta_serve", "FRAGMENT")
_library.define("add_delta(Tensor(a!) y, Tensor x, int number) -> ()")
_library.impl("add_delta", _add_delta, current_platform.dispatch_key)
_library._register_fake("add_delta", lambda y, x, number: None)
