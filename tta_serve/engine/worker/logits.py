"""The seam in vLLM's output head: which of a step's tokens logits are of, and their deltas."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from adapters.coefficient import HEAD, Coefficient
from tta_serve.engine.worker.coefficient_table import CoefficientTable
from tta_serve.engine.worker.mixture_layer import MixtureSeat
from tta_serve.engine.worker.sites import MixtureSite
from tta_serve.engine.worker.step_state import Numbers, StepState


class LogitRows:
    """Knows the slot of each state of which a model makes logits.

    Unless a block says otherwise, these are the states that a step samples from.

    Attributes:
        state: What the states use.
    """

    def __init__(
        self, model: Any, table: CoefficientTable, tokens: StepState, *, gated: bool
    ) -> None:
        """Take a seat before a model's logits.

        Args:
            model: vLLM's model.
            table: The coefficients of all slots.
            tokens: What the tokens of a step use.
            gated: Whether slots may be gated.
        """
        # vLLM captures no logits in CUDA graphs.
        self.state = StepState(
            table, len(tokens.token_slots), captured=False, gated=gated, sparse=tokens.sparse
        )
        self._needed = False
        self._table = table
        self._tokens = tokens
        self._sampled: Numbers = np.zeros(0, np.int64)
        self._warm_up = True
        self._prompts: Tensor | None = None
        self._mixes = 0  # how many there are in a block of `of_mixes`
        self._most_rows = 0
        self._begun = -1  # the table's changes when `state` began
        self._stock = model.compute_logits
        model.compute_logits = self._compute

    def begin(self, sampled: Numbers, *, warm_up: bool) -> None:
        """Start a step.

        Args:
            sampled: The slot of each state that is sampled from.
            warm_up: Whether vLLM warms up, and may make logits of any number of states.
        """
        self._sampled = sampled
        self._warm_up = warm_up

    @contextmanager
    def of_prompts(self, states: Tensor) -> Iterator[None]:
        """Make logits of slices of a step's states meanwhile.

        Args:
            states: [tokens, hidden], those of all tokens.
        """
        self._prompts = states
        try:
            yield
        finally:
            self._prompts = None

    @contextmanager
    def of_mixes(self, mixes: Sequence[Mapping[int, Coefficient]]) -> Iterator[None]:
        """Make logits of states that need not have slots meanwhile.

        The first so many are of the first mix, as many of the next one, and so on.

        Args:
            mixes: The mixes, by the experts' columns.
        """
        usual = self._table, self.state
        coefficients = usual[0].coefficients
        self._table = CoefficientTable(
            len(mixes), [HEAD], coefficients.shape[2], coefficients.device
        )
        for slot, mix in enumerate(mixes, 1):
            self._table.write(slot, mix)
        self.state = StepState(self._table, 0, captured=False, sparse=self._tokens.sparse)
        self.state.forget_banks(self._most_rows)
        self._mixes = len(mixes)
        self._begun = -1
        try:
            yield
        finally:
            self._table, self.state = usual
            self._mixes = 0
            self._begun = -1

    def change_banks(self, most_rows: int, *, needed: bool) -> None:
        """Take note of banks that were built anew.

        Args:
            most_rows: The most rows that a bank has now.
            needed: Whether any expert in them touches the head.
        """
        self._most_rows = most_rows
        self._needed = needed
        self.state.forget_banks(most_rows)

    def _compute(self, states: Tensor, *args: Any, **named: Any) -> Tensor | None:
        """Stand in for the model's `compute_logits`."""
        if self._needed:
            slots = self._find_slots(states)
            changed = self._begun != self._table.changes
            if changed or not np.array_equal(slots, self.state.slots):
                self.state.begin(slots, active=bool(slots.any()))
                self._begun = self._table.changes
        logits: Tensor | None = self._stock(states, *args, **named)
        return logits

    def _find_slots(self, states: Tensor) -> Numbers:
        if self._mixes:
            return np.arange(1, self._mixes + 1).repeat(len(states) // self._mixes)
        if self._prompts is not None:
            whole = self._prompts
            assert states.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            first = (states.storage_offset() - whole.storage_offset()) // whole.stride(0)
            return self._tokens.slots[first : first + len(states)]
        if len(states) == len(self._sampled):
            return self._sampled
        assert self._warm_up or not self._sampled.any(), "they are no step's samples"
        return np.zeros(len(states), np.int64)


class HeadSeat(MixtureSeat):
    """An output head's own product, and then the delta of each state's mix.

    It stands where a logits processor multiplies by the head: what the processor does with the
    product, such as gathering, scaling and capping, comes after.
    """

    def __init__(
        self, site: MixtureSite, rows: LogitRows, model: nn.Module, dtype: torch.dtype
    ) -> None:
        """Take a seat in all logits processors of a model.

        Args:
            site: The head.
            rows: Knows the slots of states.
            model: vLLM's model.
            dtype: The dtype of the factors.
        """
        super().__init__(site, rows.state)
        self._layer = site.layer
        self._rows = rows
        self._dtype = dtype
        for module in model.modules():
            if isinstance(module, LogitsProcessor):
                processor: Any = module
                processor._apply_head = self._wrap(processor._apply_head)

    def _wrap(self, stock: Any) -> Any:
        def apply_head(head: nn.Module, states: Tensor, bias: Tensor | None) -> Tensor:
            logits: Tensor = stock(head, states, bias)
            if self.idle or head is not self._layer:
                return logits
            self.state = self._rows.state
            wide = logits.to(self._dtype)
            self.add_delta(wide, states.to(self._dtype))
            return wide.to(logits.dtype)

        return apply_head
