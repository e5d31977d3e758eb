"""What the tokens of one step of the engine use: which coefficients, and of which experts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.bank.bank import Bank
from adapters.bank.token_gating import NUMBERS, Gating, Sharing, prepare_sharing
from adapters.coefficient import Coefficient, Place, numbers_of, spread
from tta_serve.engine.worker.cpu.sparse_bank import ExpertUses


class StepState:
    """What the tokens of the current step use. One per worker, shared by all its sites.

    Attributes:
        coefficients: [places, slots + 2, columns] float32, a column an expert; row 0 of every place
            is the base and stays zero, the last row is nowhere: it takes what no slot is to have.
        nowhere: The index of that last row.
        token_slots: [max tokens], the row of each token; tokens beyond the step's own (padding)
            point at row 0.
        captured: Whether a CUDA graph replays what the first step did, so that no step may take a
            short cut.
        active: Whether any token of the step may have a non-zero coefficient, other than those that
            are apart; without, banks cost nothing.
        apart: Which of the step's tokens are gated, where dense banks serve those alone; None if
            none is, or they serve all.
    """

    def __init__(  # noqa: PLR0913 - one size each
        self,
        slots: int,
        places: Sequence[Place],
        columns: int,
        max_tokens: int,
        device: torch.device,
        *,
        captured: bool,
        upper: int = 0,
        gated: bool = False,
        sparse: bool = False,
    ) -> None:
        """Allocate the table.

        Args:
            slots: How many mixes a step can have.
            places: The attentions and MLPs of the model, from the first layer on.
            columns: How many experts are ready at most.
            max_tokens: The most tokens of a step.
            device: Where the table is kept.
            captured: Whether a CUDA graph replays what the first step did.
            upper: The first decoder layer that uses what a pass decides.
            gated: Whether slots may be gated.
            sparse: Whether banks are, so that those of gated tokens are apart from them.
        """
        # The table, and how the model is laid out in it.
        self.coefficients = torch.zeros(
            len(places), slots + 2, columns, dtype=torch.float32, device=device
        )
        self.nowhere = slots + 1
        self.captured = captured
        self._places = {place: i for i, place in enumerate(places)}  # index of each in the table
        self._upper = sum(place.layer < upper for place in places)  # index of the first upper one
        self._sparse = sparse

        # Slots out of the ordinary: those that are gated, with their gatings, and those whose
        # coefficients differ among the lower places, or among the upper ones.
        self._gated: set[int] = set()
        self._gatings = torch.zeros(slots + 2, NUMBERS, dtype=torch.float32, device=device)
        self._uneven: set[int] = set()

        # The current step.
        self.token_slots = torch.zeros(max_tokens, dtype=torch.long, device=device)
        self.active = False
        self.apart: Tensor | None = None
        self._used = 0  # how many tokens it has
        self._even = not captured  # whether no slot of it is uneven
        self._always_gates = captured and gated  # whether every step counts as one with gated slots
        self._gates = self._always_gates  # whether a token of it is gated

        # What places ask for, kept until a step differs from the one before.
        self._rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._uses: dict[int, ExpertUses] = {}
        self._sharings: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Sharing] = {}

        # What of that depends on the banks alone, kept until they are built anew.
        self._columns: dict[tuple[int, ...], Tensor] = {}  # the columns of banks' rows, as tensors
        self._most_rows = 0  # the most rows of a bank

    def write(
        self,
        slot: int,
        coefficients: Mapping[int, Coefficient],
        *,
        upper: bool = False,
        gating: Gating | None = None,
    ) -> None:
        """Fill a slot.

        Args:
            slot: Its row of the table.
            coefficients: The mix, by the experts' columns.
            upper: Whether the lower layers run as the base.
            gating: How the experts of the mix share each token.
        """
        assert slot > 0, "row 0 is the base"

        # The row, at every place.
        table = torch.zeros(len(self._places), self.coefficients.shape[2])
        for column, coefficient in coefficients.items():
            table[:, column] = torch.tensor(spread(coefficient, list(self._places)))
        if upper:
            table[: self._upper] = 0
        self.coefficients[:, slot] = table

        # Whether places can share what is computed of it.
        if any(len(numbers_of(c)) > 1 for c in coefficients.values()):
            self._uneven.add(slot)
        else:
            self._uneven.discard(slot)

        # Its gating, or that it has none any more.
        if gating is not None:
            self._gatings[slot] = torch.tensor(gating.numbers)
            self._gated.add(slot)
        elif slot in self._gated:
            self._gatings[slot] = torch.tensor([0.0] * NUMBERS)
            self._gated.remove(slot)

    def begin(self, token_slots: np.ndarray[Any, np.dtype[np.int64]], active: bool) -> None:
        """Start a step whose tokens, or whose slots, are not those of the step before.

        Args:
            token_slots: [tokens], the row of each token.
            active: Whether any token may have a non-zero coefficient; without, banks cost nothing.
                Tokens that are apart do not count.
        """
        # Point each token at its row, and those of the step before at the base.
        n = len(token_slots)
        self.token_slots[:n].copy_(torch.from_numpy(token_slots))
        if n < self._used:
            self.token_slots[n : self._used] = 0
        self._used = n
        self.active = active

        # Forget what was kept of other tokens.
        self._even = not self.captured and (
            not self._uneven or self._uneven.isdisjoint(token_slots.tolist())
        )
        self._forget()

        # Find the tokens that are gated.
        gated = np.flatnonzero(np.isin(token_slots, [*self._gated]))
        self._gates = self._always_gates or len(gated) > 0
        self.apart = torch.from_numpy(gated) if self._sparse and self._gates else None

    def decide(self, slots: Tensor, coefficients: Tensor) -> None:
        """Fill slots in the middle of a pass, for the upper layers.

        Args:
            slots: [n], the rows.
            coefficients: [n, columns], what goes into them.
        """
        upper = self.coefficients[self._upper :]
        upper.index_copy_(1, slots, coefficients.expand(len(upper), -1, -1))
        self._forget()

    def clear(self, column: int) -> None:
        """Take an expert that is gone out of all slots."""
        self.coefficients[..., column] = 0
        self._forget()

    def forget_banks(self, most_rows: int) -> None:
        """Forget what was kept of banks that were built anew.

        Args:
            most_rows: The most rows that a bank has now.
        """
        self._columns.clear()
        self._most_rows = most_rows
        self._forget()

    def rows(self, place: Place, experts: tuple[int, ...], tokens: int) -> Tensor:
        """Return each token's coefficients spread over a bank's rows, [tokens, rows].

        They are gathered once for all banks with the same rows, and for all steps until one
        differs; for each place by itself if a mix of the step differs from place to place.

        Args:
            place: Where the bank sits.
            experts: The column of each of the bank's rows.
            tokens: How many tokens the step has.
        """
        where = self._where(place)
        rows = self._rows.get((where, experts))
        if rows is None or rows.shape[0] != tokens:
            if experts not in self._columns:
                self._columns[experts] = torch.tensor(experts, device=self.coefficients.device)
            per_slot = self.coefficients[where].index_select(1, self._columns[experts])
            rows = self._rows[where, experts] = per_slot.index_select(0, self._slots(tokens))
        return rows

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
            gatings = self._gatings.index_select(0, self._slots(tokens))
            known = self._sharings[key] = prepare_sharing(rows, gatings, bank.blocks)
        return known

    def uses(self, place: Place, tokens: int) -> ExpertUses:
        """Return what `rows` says, as a list of the coefficients that are not zero."""
        where = self._where(place)
        uses = self._uses.get(where)
        if uses is None or uses.tokens != tokens:
            slots = self.token_slots[:tokens]
            if self.apart is not None:
                slots = slots.index_fill(0, self.apart, 0)
            table = self.coefficients[where].index_select(0, slots)
            uses = ExpertUses(table, self._most_rows, torch.get_num_threads())
            self._uses[where] = uses
        return uses

    def _where(self, place: Place) -> int:
        """Return the place that stands for all that have the same coefficients as this one.

        If no slot is uneven, these are the lower places, and the upper ones.
        """
        at = self._places[place]
        if not self._even:
            return at
        return self._upper if at >= self._upper else 0

    def _slots(self, tokens: int) -> Tensor:
        """Return the rows of the tokens that dense banks serve."""
        if self.apart is None:
            return self.token_slots[:tokens]
        return self.token_slots.index_select(0, self.apart)

    def _forget(self) -> None:
        self._rows.clear()
        self._uses.clear()
        self._sharings.clear()
