"""What one step of the engine needs: whose tokens they are, and how much each uses of which expert."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.bank import Bank
from adapters.coefficient import Coefficient, Place, numbers, spread
from adapters.gating import NUMBERS, Gating, Sharing, sharing
from tta_serve.engine.sparse import Uses


class StepState:
    """What the tokens of the current step use. One per worker, shared by all its sites.

    coefficients: [places, slots + 2, columns] float32, a column an expert; row 0 of every place is the base and stays zero,
        the last row is nowhere: it takes what no slot is to have.
    token_slots: [max tokens], the row of each token; tokens beyond the step's own (padding) point at row 0.
    captured: whether a CUDA graph replays what the first step did, so that no step may take a short cut.
    apart: which of the step's tokens are gated, where dense banks serve those alone; None if none is, or they serve all.
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
        """upper: the first decoder layer that uses what a pass decides   gated: whether slots may be gated

        sparse: whether banks are, so that those of gated tokens are apart from them
        """
        self._places = {place: i for i, place in enumerate(places)}
        self._upper = sum(place.layer < upper for place in places)
        self.nowhere = slots + 1
        self.coefficients = torch.zeros(len(places), slots + 2, columns, dtype=torch.float32, device=device)
        self.token_slots = torch.zeros(max_tokens, dtype=torch.long, device=device)
        self.active = False
        self.captured = captured
        self.apart: Tensor | None = None
        self._sparse = sparse
        self._gates = self._always_gates = captured and gated  # whether a token of the step is gated
        self._gated: set[int] = set()  # slots
        self._gatings = torch.zeros(slots + 2, NUMBERS, dtype=torch.float32, device=device)
        self._uneven: set[int] = set()  # slots whose coefficients differ among the lower places, or among the upper ones
        self._even = not captured
        self._used = 0
        self._columns: dict[tuple[int, ...], Tensor] = {}
        self._rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._uses: dict[int, Uses] = {}
        self._sharings: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Sharing] = {}
        self._most_rows = 0

    def write(
        self, slot: int, coefficients: Mapping[int, Coefficient], *, upper: bool = False, gating: Gating | None = None
    ) -> None:
        """Fill a slot. coefficients: by the expert's column   upper: with the base in the lower layers"""
        assert slot > 0, "row 0 is the base"
        table = torch.zeros(len(self._places), self.coefficients.shape[2])
        for column, coefficient in coefficients.items():
            table[:, column] = torch.tensor(spread(coefficient, list(self._places)))
        if upper:
            table[: self._upper] = 0
        self.coefficients[:, slot] = table
        if any(len(numbers(c)) > 1 for c in coefficients.values()):
            self._uneven.add(slot)
        else:
            self._uneven.discard(slot)
        if gating is not None or slot in self._gated:
            self._gatings[slot] = torch.tensor(gating.numbers if gating else [0.0] * NUMBERS)
            (self._gated.add if gating else self._gated.remove)(slot)

    def begin(self, token_slots: np.ndarray[Any, np.dtype[np.int64]], active: bool) -> None:
        """Start a step whose tokens, or whose slots, are not those of the step before.

        active: whether any token may have a non-zero coefficient; without, banks cost nothing. Not of tokens that are apart.
        """
        n = len(token_slots)
        self.token_slots[:n].copy_(torch.from_numpy(token_slots))
        if n < self._used:
            self.token_slots[n : self._used] = 0
        self._used = n
        self.active = active
        self._even = not self.captured and (not self._uneven or self._uneven.isdisjoint(token_slots.tolist()))
        self._forget()
        gated = np.flatnonzero(np.isin(token_slots, [*self._gated]))
        self._gates = self._always_gates or len(gated) > 0
        self.apart = torch.from_numpy(gated) if self._sparse and self._gates else None

    def decide(self, slots: Tensor, coefficients: Tensor) -> None:
        """Fill slots in the middle of a pass, for the upper layers. slots: [n]   coefficients: [n, columns]"""
        upper = self.coefficients[self._upper :]
        upper.index_copy_(1, slots, coefficients.expand(len(upper), -1, -1))
        self._forget()

    def clear(self, column: int) -> None:
        """An expert is gone: no slot uses it."""
        self.coefficients[..., column] = 0
        self._forget()

    def forget_banks(self, most_rows: int) -> None:
        """The banks were built anew, and with them their rows. most_rows: of a bank"""
        self._columns.clear()
        self._most_rows = most_rows
        self._forget()

    def rows(self, place: Place, experts: tuple[int, ...], tokens: int) -> Tensor:
        """Coefficients of each token spread over a bank's rows. Returns [tokens, rows].

        Gathered once for all banks with the same rows, and for all steps until one differs; for each place by itself if a mix
        of the step differs from place to place.
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
        """What each token that dense banks serve uses of a bank's rows; kept as `rows` are."""
        rows = self.rows(place, bank.expert, tokens)
        if not self._gates:
            return rows
        key = self._where(place), bank.expert, bank.rows
        made = self._sharings.get(key)
        if made is None or made.coefficients is not rows:
            gatings = self._gatings.index_select(0, self._slots(tokens))
            made = self._sharings[key] = sharing(rows, gatings, bank.blocks)
        return made

    def uses(self, place: Place, tokens: int) -> Uses:
        """What `rows` says, as a list of the coefficients that are not zero."""
        where = self._where(place)
        uses = self._uses.get(where)
        if uses is None or uses.tokens != tokens:
            slots = self.token_slots[:tokens]
            if self.apart is not None:
                slots = slots.index_fill(0, self.apart, 0)
            table = self.coefficients[where].index_select(0, slots)
            uses = self._uses[where] = Uses(table, self._most_rows, torch.get_num_threads())
        return uses

    def _where(self, place: Place) -> int:
        """A place with the same coefficients as this one, the same for all that have them."""
        at = self._places[place]
        return at if not self._even else self._upper if at >= self._upper else 0

    def _slots(self, tokens: int) -> Tensor:
        """Of the tokens that dense banks serve."""
        return self.token_slots[:tokens] if self.apart is None else self.token_slots.index_select(0, self.apart)

    def _forget(self) -> None:
        self._rows.clear()
        self._uses.clear()
        self._sharings.clear()
