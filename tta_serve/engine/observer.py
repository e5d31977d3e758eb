"""What is kept of a probe's tokens, from the steps that run them to the call that asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from adapters.coefficient import Place

_UNREAD = 1024


class Sees(Protocol):
    """What a linear layer shows its inputs to."""

    @property
    def looking(self) -> bool: ...

    def observe(self, x: Tensor, token_slots: Tensor, place: Place | None) -> None: ...


class Running(NamedTuple):
    """A probe in the current step. slot: of its tokens   skip: how many of its first tokens to pass over"""

    slot: int
    skip: int = 0


class Seen(Protocol):
    """What is kept of one probe. seen: how many of its tokens passed by"""

    @property
    def seen(self) -> int: ...


Kept = TypeVar("Kept", bound=Seen)


class Observer(ABC, Generic[Kept]):
    """Sees the tokens of all probes of one kind where it was put, and keeps something of each probe by itself.

    Bounded: a step with probes begins with at most `capacity` kept. What goes is the oldest, which requests left behind that
    were given up before anybody asked for it.
    """

    capacity = _UNREAD

    def __init__(self) -> None:
        self.probes: Mapping[int, Running] = {}
        self._kept: dict[int, Kept] = {}

    @property
    def looking(self) -> bool:
        """Whether the step has anything to see."""
        return bool(self.probes)

    def begin(self, probes: Mapping[int, Running]) -> None:
        """Start a step. probes: those of this kind in it, by id"""
        self.probes = probes
        if probes:
            room = self.capacity - sum(map(self._size, self._kept.values()))
            while room < 0:
                room += self._size(self._kept.pop(next(iter(self._kept))))

    def observe(self, x: Tensor, token_slots: Tensor, place: Place | None) -> None:
        """Look at the tokens of a step. x: [tokens, width]   token_slots: [at least tokens]   place: None beyond all layers"""
        for probe, running in self.probes.items():
            mine = x[token_slots[: x.shape[0]] == running.slot]
            self._kept[probe] = self._add(self._kept.pop(probe, None), mine, running, place)

    def take(self, probes: Sequence[int], tokens: Sequence[int]) -> Any:
        """What was observed of probes of the same tokens, as plain values, and forget it.

        None if one did not pass by as it was sent: it was preempted and ran again, or what was kept of it has been dropped.
        """
        kept = [self._kept.pop(probe, None) for probe in probes]
        whole = [one for one in kept if one is not None and one.seen == len(tokens)]
        return self._read(whole, tokens) if len(whole) == len(kept) else None

    @abstractmethod
    def _add(self, before: Kept | None, x: Tensor, running: Running, place: Place | None) -> Kept:
        """What to keep of a probe after its next tokens, x: [tokens, width], a copy."""

    @abstractmethod
    def _read(self, kept: Sequence[Kept], tokens: Sequence[int]) -> Any:
        """What `take` returns of them."""

    def _size(self, _: Kept) -> int:
        """How much of the capacity it takes."""
        return 1
