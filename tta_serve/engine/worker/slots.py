"""Which mix sits in which row of the coefficient table."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class SlotTable(Generic[Key]):
    """Slots in a row, recycled least-recently-used; slot 0 is the base and never assigned.

    All mixes of one engine step are bound together: none of them can push out another of the same
    step.
    """

    def __init__(self, capacity: int, first: int = 1) -> None:
        assert first > 0, "slot 0 is the base"
        self.capacity = capacity
        self._slot_by_id: OrderedDict[Key, int] = OrderedDict()
        self._free = list(range(first + capacity - 1, first - 1, -1))

    def bind(self, ids: Iterable[Key]) -> list[tuple[Key, int]]:
        """Give every id a slot.

        Returns the (id, slot) pairs that were not there before: their rows must be written.
        """
        wanted = list(dict.fromkeys(ids))
        assert len(wanted) <= self.capacity, (
            f"{len(wanted)} mixes in one step, {self.capacity} slots"
        )
        new = [i for i in wanted if i not in self._slot_by_id]
        for known in wanted:
            if known in self._slot_by_id:
                self._slot_by_id.move_to_end(known)
        written = []
        for fresh in new:
            # Ids of this step sit at the end, so the oldest is never one of them.
            slot = self._free.pop() if self._free else self._slot_by_id.popitem(last=False)[1]
            self._slot_by_id[fresh] = slot
            written.append((fresh, slot))
        return written

    def slot(self, request_id: Key) -> int:
        """Return the slot of a bound id; 0 for id 0, by which vLLM means no adapter."""
        return 0 if request_id == 0 else self._slot_by_id[request_id]

    def remove(self, request_id: Key) -> bool:
        """Free the slot of an id. Returns whether it had one."""
        slot = self._slot_by_id.pop(request_id, None)
        if slot is None:
            return False
        self._free.append(slot)
        return True

    def clear(self) -> None:
        """Free all slots."""
        for request_id in list(self._slot_by_id):
            self.remove(request_id)

    def __contains__(self, request_id: Key) -> bool:
        return request_id in self._slot_by_id

    def __len__(self) -> int:
        return len(self._slot_by_id)

    def ids(self) -> set[Key]:
        """Return the ids that have a slot."""
        return set(self._slot_by_id)
