"""The table of coefficients: which mix each slot stands for, at every place of the model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.bank.token_gating import NUMBERS, Gating
from adapters.coefficient import Coefficient, Place, numbers_of, spread

ENTRY = Place(-2, "attention")
"""The norm before the first layer that uses what a pass decides.

It runs before that is decided: it is among the lower places, and has the coefficient that the
attention behind it has.
"""


class CoefficientTable:
    """The mixes of all slots. One per worker.

    Attributes:
        coefficients: [places, slots + 2, columns] float32, a column an expert; row 0 of every place
            is the base and stays zero, the last row is nowhere: it takes what no slot is to have.
        nowhere: The index of that last row.
        upper: The index of the first place that uses what a pass decides.
        gated: The slots that are gated.
        gatings: [slots + 2, NUMBERS], their gatings, zeros for the others.
        uneven: The slots whose coefficients differ among the lower places, or among the upper ones.
        changes: Counts what may change coefficients.
    """

    def __init__(
        self,
        slots: int,
        places: Sequence[Place],
        columns: int,
        device: torch.device,
        *,
        upper: int = 0,
    ) -> None:
        """Allocate the table.

        Args:
            slots: How many slots there are.
            places: The attentions and MLPs of the model, from the first layer on, with the token
                embedding before and the output head after them where experts may touch those, and
                `ENTRY` where it is a norm's place.
            columns: How many experts are ready at most.
            device: Where the table is kept.
            upper: The first decoder layer that uses what a pass decides.
        """
        self.coefficients = torch.zeros(
            len(places), slots + 2, columns, dtype=torch.float32, device=device
        )
        self.nowhere = slots + 1
        self.upper = sum(place.layer < upper for place in places)
        self.gated: set[int] = set()
        self.gatings = torch.zeros(slots + 2, NUMBERS, dtype=torch.float32, device=device)
        self.uneven: set[int] = set()
        self.changes = 0
        self._places = {place: i for i, place in enumerate(places)}
        entered = Place(upper, "attention")
        self._stand_for = [entered if place == ENTRY else place for place in places]

    def index(self, place: Place) -> int:
        """Return the index of a place in the table."""
        return self._places[place]

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
        self.changes += 1

        # The row, at every place.
        table = torch.zeros(len(self._places), self.coefficients.shape[2])
        for column, coefficient in coefficients.items():
            table[:, column] = torch.tensor(spread(coefficient, self._stand_for))
        if upper:
            table[: self.upper] = 0
        self.coefficients[:, slot] = table

        # Whether places can share what is computed of it.
        if any(len(numbers_of(c)) > 1 for c in coefficients.values()):
            self.uneven.add(slot)
        else:
            self.uneven.discard(slot)

        # Its gating, or that it has none any more.
        if gating is not None:
            self.gatings[slot] = torch.tensor(gating.numbers)
            self.gated.add(slot)
        elif slot in self.gated:
            self.gatings[slot] = torch.tensor([0.0] * NUMBERS)
            self.gated.remove(slot)

    def decide(self, slots: Tensor, coefficients: Tensor) -> None:
        """Fill slots in the middle of a pass, for the upper layers.

        Args:
            slots: [n], the rows.
            coefficients: [n, columns], what goes into them.
        """
        self.changes += 1
        upper = self.coefficients[self.upper :]
        upper.index_copy_(1, slots, coefficients.expand(len(upper), -1, -1))

    def clear(self, column: int) -> None:
        """Take an expert that is gone out of all slots."""
        self.changes += 1
        self.coefficients[..., column] = 0
