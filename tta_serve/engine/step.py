"""What one step of the engine needs: whose tokens they are, and how much each uses of which expert."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.coefficient import Coefficient, Place, numbers, spread
from tta_serve.engine.sparse import Uses


class StepState:
    """What the tokens of the current step use. One per worker, shared by all its sites.

    coefficients: [places, slots + 2, columns] float32, a column an expert; row 0 of every place is the base and stays zero,
        the last row is nowhere: it takes what no slot is to have.
    token_slots: [max tokens], the row of each token; tokens beyond the step's own (padding) point at row 0.
    captured: whether a CUDA graph replays what the first step did, so that no step may take a short cut.
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
    ) -> None:
        """upper: the first decoder layer that uses what a pass decides"""
        self._places = {place: i for i, place in enumerate(places)}
        self._upper = sum(place.layer < upper for place in places)
        self.nowhere = slots + 1
        self.coefficients = torch.zeros(len(places), slots + 2, columns, dtype=torch.float32, device=device)
        self.token_slots = torch.zeros(max_tokens, dtype=torch.long, device=device)
        self.active = False
        self.captured = captured
        self._uneven: set[int] = set()  # slots whose coefficients differ among the lower places, or among the upper ones
        self._even = not captured
        self._used = 0
        self._columns: dict[tuple[int, ...], Tensor] = {}
        self._rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._uses: dict[int, Uses] = {}
        self._most_rows = 0

    def write(self, slot: int, coefficients: Mapping[int, Coefficient], *, upper: bool = False) -> None:
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

    def begin(self, token_slots: np.ndarray[Any, np.dtype[np.int64]], active: bool) -> None:
        """Start a step whose tokens, or whose slots, are not those of the step before.

        active: whether any token has a non-zero coefficient; without, banks cost nothing.
        """
        n = len(token_slots)
        self.token_slots[:n].copy_(torch.from_numpy(token_slots))
        if n < self._used:
            self.token_slots[n : self._used] = 0
        self._used = n
        self.active = active
        self._even = not self.captured and (not self._uneven or self._uneven.isdisjoint(token_slots.tolist()))
        self._forget()

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
            rows = self._rows[where, experts] = per_slot.index_select(0, self.token_slots[:tokens])
        return rows

    def uses(self, place: Place, tokens: int) -> Uses:
        """What `rows` says, as a list of the coefficients that are not zero."""
        where = self._where(place)
        uses = self._uses.get(where)
        if uses is None or uses.tokens != tokens:
            table = self.coefficients[where].index_select(0, self.token_slots[:tokens])
            uses = self._uses[where] = Uses(table, self._most_rows, torch.get_num_threads())
        return uses

    def _where(self, place: Place) -> int:
        """A place with the same coefficients as this one, the same for all that have them."""
        at = self._places[place]
        return at if not self._even else self._upper if at >= self._upper else 0

    def _forget(self) -> None:
        self._rows.clear()
        self._uses.clear()
