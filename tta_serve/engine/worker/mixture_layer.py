"""The seam in vLLM's layers, where y += B (c * (A x)) is added for each token's mix."""

import time
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm.platforms import current_platform

from adapters.bank.bank import Bank
from adapters.bank.sign_bank import SignBank
from adapters.bank.vector_bank import VectorBank
from tta_serve.engine.worker.cpu.lookup_bank import LookupBank
from tta_serve.engine.worker.cpu.sparse_bank import SparseBank
from tta_serve.engine.worker.probes.observer import InputObserver
from tta_serve.engine.worker.sites import MixtureSite
from tta_serve.engine.worker.step_state import StepState


class Seat(Protocol):
    """What adds to the output of a layer of a model that may be compiled."""

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        """Add to y, in place, what the tokens' mixes make of x."""


def number_seat(seat: Seat) -> int:
    """Return the number by which a compiled model knows a seat, as long as it is there."""
    number = next(_numbers)
    _SEATS[number] = seat
    return number


class MixtureSeat:
    """Adds the delta of each token's mix to what a layer makes.

    Attributes:
        place: Where the layer sits.
        state: What the tokens use.
        bank: The bank of the low-rank experts in use, None where they leave the layer alone.
        apart: A bank for gated tokens alone, where others do not serve them.
        signs: The bank of the one-bit experts in use.
        biases: What these add to the layer's bias.
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
        self.signs: SignBank | LookupBank | None = None
        self.biases: VectorBank | None = None
        self.number = number_seat(self)

    @property
    def idle(self) -> bool:
        """Whether no expert in use touches the layer."""
        banks = self.bank, self.apart, self.signs, self.biases
        return all(bank is None for bank in banks)

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        """Add the delta of each token's mix to y, in place.

        Args:
            y: [..., out], the layer's own product.
            x: [tokens, in], the layer's input; or [tokens], which of the inputs is 1 if all others
                are 0.
        """
        # Add the delta of all tokens, or, where there is a bank apart, of those that are not gated.
        state, bank = self.state, self.bank
        began = time.perf_counter() if state.timed else 0.0
        if bank is not None and state.active:
            if isinstance(bank, SparseBank):
                bank.add_(y, x, state.uses(self.place, x.shape[0]))
            elif state.sparse:
                plain = state.plain(self.place, bank.expert, x.shape[0])
                bank.add_(y.view(-1, y.shape[-1]), x, plain)
            else:
                self._add_dense(bank, y.view(-1, y.shape[-1]), x)

        # Add that of one-bit experts.
        if state.active and not (self.signs is None and self.biases is None):
            self._add_one_bit(y.view(-1, y.shape[-1]), x)

        # Add that of gated tokens, which only dense banks serve.
        if isinstance(self.apart, Bank) and state.apart is not None:
            self._add_apart(self.apart, y.view(-1, y.shape[-1]), x, state.apart)
        if state.timed and state.active:
            state.banks_s += time.perf_counter() - began

    def _add_one_bit(self, y: Tensor, x: Tensor) -> None:
        state, signs, biases = self.state, self.signs, self.biases
        if isinstance(signs, LookupBank):
            signs.add_(y, x, state.uses(self.place, x.shape[0]))
        elif signs is not None:
            signs.add_(y, x, state.plain(self.place, signs.experts, x.shape[0]))
        if biases is not None:
            y += biases.mix(state.plain(self.place, biases.experts, x.shape[0]))[0].to(y.dtype)

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
_SEATS: WeakValueDictionary[int, "Seat"] = WeakValueDictionary()
_numbers = count()


def _add_delta(y: Tensor, x: Tensor, number: int) -> None:
    _SEATS[number].add_delta(y, x)


_library = torch.library.Library("tta_serve", "FRAGMENT")
_library.define("add_delta(Tensor(a!) y, Tensor x, int number) -> ()")
_library.impl("add_delta", _add_delta, current_platform.dispatch_key)
_library._register_fake("add_delta", lambda y, x, number: None)
