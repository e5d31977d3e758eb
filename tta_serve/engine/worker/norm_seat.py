"""The seam behind vLLM's norms, where y += N(x) sum_k c_k dw_k is added for each token's mix."""

from typing import Any

import torch
from torch import Tensor, nn

from adapters.bank.vector_bank import VectorBank
from tta_serve.engine.worker.mixture_layer import number_seat
from tta_serve.engine.worker.norm_sites import NormSite
from tta_serve.engine.worker.step_state import StepState


class NormSeat:
    """Adds what each token's mix changes of a norm's weight, to what the norm makes.

    Attributes:
        bank: What the experts in use add to the weight, None where they leave the norm alone.
    """

    def __init__(self, site: NormSite, state: StepState, *, traced: bool) -> None:
        """Take a seat behind a norm.

        Args:
            site: The norm.
            state: What the tokens of a step use.
            traced: Whether the model is compiled.
        """
        self.bank: VectorBank | None = None
        self._site = site
        self._state = state
        self._traced = traced
        self._number = number_seat(self)
        site.layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], made: Any) -> None:
        # With a residual the norm is of the sum, which comes second.
        y, x = made if isinstance(made, tuple) else (made, inputs[0])
        if self._traced:
            torch.ops.tta_serve.add_delta(y, x, self._number)
        elif self.bank is not None:
            self.add_delta(y, x)

    def add_delta(self, y: Tensor, x: Tensor) -> None:
        """Add N(x) sum_k c_k dw_k, and a bias's change, to y, in place.

        Args:
            y: [tokens, .., size], the norm's output.
            x: Of the same shape, what it is the norm of.
        """
        bank, state = self.bank, self._state
        if bank is None or not state.active:
            return
        mixed = bank.mix(state.plain(self._site.place, bank.experts, y.shape[0]))
        mixed = mixed.view(len(mixed), y.shape[0], *[1] * (y.dim() - 2), -1)
        delta = self._site.normalise(x) * mixed[0]
        y += (delta if len(mixed) == 1 else delta + mixed[1]).to(y.dtype)
