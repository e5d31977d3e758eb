"""The coefficient table and the delta it steers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters.bank import Bank


class StepState:
    """What the tokens of the current step use. One per worker, shared by all its banks.

    coefficients: [slots + 1, experts] float32; row 0 is the base and stays zero.
    token_slots: [max tokens], the row of each token; tokens beyond the step's own (padding) point at row 0.
    """

    def __init__(self, slots: int, experts: int, max_tokens: int, device: torch.device) -> None:
        self.coefficients = torch.zeros(slots + 1, experts, dtype=torch.float32, device=device)
        self.token_slots = torch.zeros(max_tokens, dtype=torch.long, device=device)
        self.active = False
        self.tap: Tap | None = None
        self._used = 0
        self._columns: dict[tuple[int, ...], Tensor] = {}
        self._rows: dict[tuple[tuple[int, ...], int], Tensor] = {}

    def write(self, slot: int, row: list[float]) -> None:
        assert slot > 0, "row 0 is the base"
        self.coefficients[slot] = torch.tensor(row, dtype=torch.float32)

    def begin(self, token_slots: np.ndarray[Any, np.dtype[np.int64]], active: bool) -> None:
        """Start a step. active: whether any token has a non-zero coefficient; without, banks cost nothing."""
        n = len(token_slots)
        self.token_slots[:n].copy_(torch.from_numpy(token_slots))
        if n < self._used:
            self.token_slots[n : self._used] = 0
        self._used = n
        self.active = active
        self._rows.clear()

    def rows(self, experts: tuple[int, ...], tokens: int) -> Tensor:
        """Coefficients of each token spread over a bank's rows, gathered once a step per layout. Returns [tokens, rows]."""
        key = (experts, tokens)
        rows = self._rows.get(key)
        if rows is None:
            if experts not in self._columns:
                self._columns[experts] = torch.tensor(experts, device=self.coefficients.device)
            per_slot = self.coefficients.index_select(1, self._columns[experts])
            rows = self._rows[key] = per_slot.index_select(0, self.token_slots[:tokens])
        return rows


class Tap:
    """Sums, per probe, of the input of one early layer over the probe's tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.probes: dict[int, int] = {}
        self._sums: dict[int, tuple[Tensor, int]] = {}

    def begin(self, probes: dict[int, int]) -> None:
        """probes: slot by probe id, of this step."""
        self.probes = probes

    def observe(self, x: Tensor, token_slots: Tensor) -> None:
        for probe, slot in self.probes.items():
            mine = x[token_slots == slot].float()
            total, count = self._sums.pop(probe, (torch.zeros_like(x[0], dtype=torch.float32), 0))
            self._sums[probe] = (total + mine.sum(0), count + mine.shape[0])
        while len(self._sums) > self.capacity:  # left behind by requests that were given up before they were read
            del self._sums[next(iter(self._sums))]

    def take(self, probe: int) -> tuple[int, list[float]] | None:
        """Tokens seen and their mean, and forget them; None if nothing was seen."""
        found = self._sums.pop(probe, None)
        if found is None:
            return None
        total, count = found
        return count, (total / count).tolist()


class MixtureMethod:
    """Stands where a linear layer keeps its quant method: the layer's own product, then the delta of each token's mix.

    This one seam serves every kind of linear layer, quantised or not: the layer shards, gathers and reduces as always, and
    in a row-parallel layer the delta joins the partial sums before they are reduced.
    """

    def __init__(self, inner: Any, bank: Bank | None, state: StepState, tapped: bool) -> None:
        self.inner = inner
        self.bank = bank
        self.state = state
        self.tapped = tapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = self.inner.apply(layer, x, bias)
        state = self.state
        if self.tapped and state.tap is not None and state.tap.probes:
            flat = x.reshape(-1, x.shape[-1])
            state.tap.observe(flat, state.token_slots[: flat.shape[0]])
        if self.bank is not None and state.active:
            flat = x.reshape(-1, x.shape[-1])
            self.bank.add_(y.view(-1, y.shape[-1]), flat, state.rows(self.bank.expert, flat.shape[0]))
        return y
