"""What the tokens of one step of the engine use: which coefficients, and of which experts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.bank.bank import Bank
from adapters.bank.token_gating import Sharing, prepare_sharing
from adapters.coefficient import Place
from tta_serve.engine.worker.coefficient_table import CoefficientTable
from tta_serve.engine.worker.cpu.sparse_bank import ExpertUses

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class StepState:
    """What some tokens use: those that a step runs, or those of which it makes logits.

    Attributes:
        table: The coefficients of all slots.
        slots: [tokens], the row of each token, on the host.
        token_slots: [max tokens], the row of each token; tokens beyond the step's own (padding)
            point at row 0.
        captured: Whether a CUDA graph replays what the first step did, so that no step may take a
            short cut.
        sparse: Whether banks are, so that those of gated tokens are apart from them.
        timed: Whether what banks cost is measured, on the host's clock.
        banks_s: What banks have cost since it was last set to 0, in seconds, if that is measured.
        active: Whether any token of the step may have a non-zero coefficient, other than those that
            are apart; without, banks cost nothing.
        apart: Which of the step's tokens are gated, where dense banks serve those alone; None if
            none is, or they serve all.
    """

    def __init__(
        self,
        table: CoefficientTable,
        max_tokens: int,
        *,
        captured: bool,
        gated: bool = False,
        sparse: bool = False,
    ) -> None:
        """Start without tokens.

        Args:
            table: The coefficients of all slots.
            max_tokens: The most tokens; more take longer.
            captured: Whether a CUDA graph replays what the first step did.
            gated: Whether slots may be gated.
            sparse: Whether banks are, so that those of gated tokens are apart from them.
        """
        self.table = table
        self.captured = captured
        self.sparse = sparse
        self.timed = False
        self.banks_s = 0.0

        # The current step.
        self.slots: Numbers = np.zeros(0, np.int64)
        self.token_slots = torch.zeros(
            max_tokens, dtype=torch.long, device=table.coefficients.device
        )
        self.active = False
        self.apart: Tensor | None = None
        self._even = not captured  # whether no slot of it is uneven
        self._always_gates = captured and gated  # whether every step counts as one with gated slots
        self._gates = self._always_gates  # whether a token of it is gated

        # What places ask for, kept until a step, or the table, differs from the one before.
        self._changes = table.changes
        self._rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._plain: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._uses: dict[int, ExpertUses] = {}
        self._sharings: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Sharing] = {}

        # What of that depends on the banks alone, kept until they are built anew.
        self._columns: dict[tuple[int, ...], Tensor] = {}  # the columns of banks' rows, as tensors
        self._most_rows = 0  # the most rows of a bank

    def begin(self, slots: Numbers, active: bool) -> None:
        """Start a step whose tokens, or whose slots, are not those of the step before.

        Args:
            slots: [tokens], the row of each token.
            active: Whether any token may have a non-zero coefficient; without, banks cost nothing.
                Tokens that are apart do not count.
        """
        # Point each token at its row, and those of the step before at the base.
        n, before = len(slots), len(self.slots)
        if n > len(self.token_slots):
            assert not self.captured, "a graph knows an address"
            self.token_slots = self.token_slots.new_zeros(n)
        self.token_slots[:n].copy_(torch.from_numpy(slots))
        if n < before:
            self.token_slots[n:before] = 0
        self.slots = slots
        self.active = active

        # Forget what was kept of other tokens.
        uneven = self.table.uneven
        self._even = not self.captured and (not uneven or uneven.isdisjoint(slots.tolist()))
        self._forget()

        # Find the tokens that are gated.
        gated = np.flatnonzero(np.isin(slots, [*self.table.gated]))
        self._gates = self._always_gates or len(gated) > 0
        self.apart = torch.from_numpy(gated) if self.sparse and self._gates else None

    def forget_banks(self, most_rows: int) -> None:
        """Forget what was kept of banks that were built anew.

        Args:
            most_rows: The most rows that a bank has now.
        """
        self._columns.clear()
        self._most_rows = most_rows
        self._forget()

    def rows(self, place: Place, experts: tuple[int, ...], tokens: int) -> Tensor:
        """Return the coefficients of tokens that dense banks serve, spread over a bank's rows.

        They are gathered once for all banks with the same rows, and for all steps until one
        differs; for each place by itself if a mix of the step differs from place to place.

        Args:
            place: Where the bank sits.
            experts: The column of each of the bank's rows.
            tokens: How many tokens the step has.

        Returns [tokens, rows].
        """
        return self._gather(self._rows, place, experts, tokens, self._dense_slots)

    def plain(self, place: Place, experts: tuple[int, ...], tokens: int) -> Tensor:
        """Return what `uses` says, as `rows` gives it: zeros for tokens that are apart."""
        return self._gather(self._plain, place, experts, tokens, self._plain_slots)

    def dense(self, place: Place, bank: Bank, tokens: int) -> Tensor | Sharing:
        """Return what each token that dense banks serve uses of a bank's rows.

        It is kept as `rows` are. Where a token is gated, it says too how experts share it.
        """
        rows = self.rows(place, bank.expert, tokens)
        if not self._gates:
            return rows
        key = self._where(place), bank.expert, bank.rows
        known = self._sharings.get(key)
        if known is None or known.coefficients is not rows:
            gatings = self.table.gatings.index_select(0, self._dense_slots(tokens))
            known = self._sharings[key] = prepare_sharing(rows, gatings, bank.blocks)
        return known

    def uses(self, place: Place, tokens: int) -> ExpertUses:
        """Return what each token uses that is not apart, as a list of what is not zero."""
        self._follow_table()
        where = self._where(place)
        uses = self._uses.get(where)
        if uses is None or uses.tokens != tokens:
            table = self.table.coefficients[where].index_select(0, self._plain_slots(tokens))
            uses = ExpertUses(table, self._most_rows, torch.get_num_threads())
            self._uses[where] = uses
        return uses

    def _gather(
        self,
        known: dict[tuple[int, tuple[int, ...]], Tensor],
        place: Place,
        experts: tuple[int, ...],
        tokens: int,
        slots: Callable[[int], Tensor],
    ) -> Tensor:
        """Return the coefficients of some tokens spread over a bank's rows, as far as known."""
        self._follow_table()
        where = self._where(place)
        rows = known.get((where, experts))
        if rows is None or rows.shape[0] != tokens:
            if experts not in self._columns:
                self._columns[experts] = torch.tensor(experts, device=self.token_slots.device)
            per_slot = self.table.coefficients[where].index_select(1, self._columns[experts])
            rows = known[where, experts] = per_slot.index_select(0, slots(tokens))
        return rows

    def _where(self, place: Place) -> int:
        """Return the place that stands for all that have the same coefficients as this one.

        If no slot is uneven, these are the lower places, and the upper ones.
        """
        at = self.table.index(place)
        if not self._even:
            return at
        return self.table.upper if at >= self.table.upper else 0

    def _dense_slots(self, tokens: int) -> Tensor:
        """Return the rows of the tokens that dense banks serve."""
        if self.apart is None:
            return self.token_slots[:tokens]
        return self.token_slots.index_select(0, self.apart)

    def _plain_slots(self, tokens: int) -> Tensor:
        """Return the rows of all tokens, those that are apart at the base's."""
        slots = self.token_slots[:tokens]
        return slots if self.apart is None else slots.index_fill(0, self.apart, 0)

    def _follow_table(self) -> None:
        """Forget what was kept of coefficients that have changed."""
        if self._changes != self.table.changes:
            self._changes = self.table.changes
            self._forget()

    def _forget(self) -> None:
        self._rows.clear()
        self._plain.clear()
        self._uses.clear()
        self._sharings.clear()
