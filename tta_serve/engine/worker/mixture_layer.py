"""The seam in vLLM's layers, where y += B (c * (A x)) is added for each token's mix."""

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
from tta_serve.engine.worker.sites import MixtureSite
from tta_serve.engine.worker.step_state import StepState


class MixtureSeat:
    """Adds the delta of each token's mix to what a layer makes.

    Attributes:
        place: Where the layer sits.
        state: What the tokens use.
        bank: The bank of the experts in use, None where they leave the layer alone.
        apart: A bank for gated tokens alone, where others do not serve them.
        number: How a compiled model knows the seat.
    """

    def __init__(self, site: MixtureSite, state: StepState) -> None:
        """Start without banks.

        Args:
            site: The layer.
            state: What the tokens use.
        """
        self.place = site.place
        self.state = state
        self.whole = site.whole
        self.bank: Bank | SparseBank | None = None
        self.apart: Bank | SparseBank | None = None
        self.number = next(_numbers)
        _SEATS[self.number] = self

    @property
    def idle(self) -> bool:
        """Whether no expert in use touches the layer."""
        return self.bank is None and self.apart is None

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        """Add the delta of each token's mix to y, in place.

        Args:
            y: [..., out], the layer's own product.
            x: [tokens, in], the layer's input; or [tokens], which of the inputs is 1 if all others
                are 0.
        """
        # Add the delta of all tokens, or, where there is a bank apart, of those that are not gated.
        state, bank = self.state, self.bank
        if bank is not None and state.active:
            if isinstance(bank, SparseBank):
                bank.add_(y, x, state.uses(self.place, x.shape[0]))
            elif state.sparse:
                bank.add_(y.view(-1, y.shape[-1]), x, state.plain(self.place, bank, x.shape[0]))
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


class MixtureMethod(MixtureSeat):
    """A linear layer's own product, and then the delta of each token's mix.

    It stands where the layer keeps its quant method. This one seam serves every kind of linear
    layer, quantised or not: the layer shards, gathers and reduces as always, and in a row-parallel
    layer the delta joins the partial sums before they are reduced.

    Attributes:
        inner: The layer's own quant method.
        observers: Who sees the layer's inputs.
        traced: Whether the model is compiled.
    """

    def __init__(
        self,
        site: MixtureSite,
        state: StepState,
        observers: Sequence[InputObserver],
        *,
        traced: bool,
    ) -> None:
        """Take the seat of the quant method of a site's layer.

        Args:
            site: The layer.
            state: What the tokens of a step use.
            observers: Who sees the layer's inputs.
            traced: Whether the model is compiled.
        """
        super().__init__(site, state)
        self.inner: Any = site.layer.quant_method
        self.observers = observers
        self.traced = traced
        site.layer.quant_method = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = self.inner.apply(layer, x, bias)
        if self.traced:
            torch.ops.tta_serve.add_delta(y, x, self.number)
        elif self.observers or not self.idle:
            self.add_delta(y, x)
        return y

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        if x.dim() != 2:
            x = x.view(-1, x.shape[-1])

        # Show the input to whoever observes it; routing may decide here what the bank adds.
        for observer in self.observers:
            if observer.looking:
                observer.observe(x, self.state.token_slots, self.place)

        super().add_delta(y, x)


class EmbeddingSeat(MixtureSeat):
    """A token embedding's own rows, and then the delta of each token's mix.

    It adds to the layer's output, which tensor-parallel ranks have put together by then.
    """

    def __init__(self, site: MixtureSite, state: StepState, *, traced: bool) -> None:
        """Take a seat behind a site's layer.

        Args:
            site: The layer.
            state: What the tokens of a step use.
            traced: Whether the model is compiled.
        """
        super().__init__(site, state)
        self._traced = traced
        site.layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        if self._traced:
            torch.ops.tta_serve.add_delta(y, inputs[0], self.number)
        elif not self.idle:
            self.add_delta(y, inputs[0])

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        x = x.reshape(-1)
        assert x.shape[0] >= len(self.state.slots), "only some of a step's tokens are embedded"
        super().add_delta(y, x)


# A compiled model knows its seats by number: what one does in a step is not for the compiler to
# see.
_SEATS: WeakValueDictionary[int, MixtureSeat] = WeakValueDictionary()
_numbers = count()


def _add_delta(y: Tensor, x: Tensor, number: int) -> None:
    _SEATS[number].add_delta(y, x)


_library = torch.library.Library("tta_serve", "FRAGMENT")
_library.define("add_delta(Tensor(a!) y, Tensor x, int number) -> ()")
_library.impl("add_delta", _add_delta, current_platform.dispatch_key)
_library._register_fake("add_delta", lambda y, x, number: None)
