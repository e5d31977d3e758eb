"""What is kept of a probe's tokens, from the steps that run them to the call that asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from adapters.coefficient import Coefficient, Place
from tta_serve.engine import wire

_UNREAD = 1024


class InputObserver(Protocol):
    """What a linear layer shows its inputs to."""

    @property
    def looking(self) -> bool:
        """Whether the current step has anything to see."""
        ...

    def observe(self, x: Tensor, token_slots: Tensor, place: Place | None) -> None:
        """Look at the inputs of a layer.

        Args:
            x: [tokens, width], the inputs.
            token_slots: [at least tokens], the slot of each token.
            place: Where the layer sits, None beyond all layers.
        """
        ...


class RunningProbe(NamedTuple):
    """A probe in the current step."""

    slot: int
    """The slot of its tokens."""
    skip: int = 0
    """How many of its first tokens to pass over."""
    mix: Mapping[str, Coefficient] = MappingProxyType({})
    """What it runs as in slots, by expert digest."""
    dense: wire.DenseKey = ()
    """What is in the weights meanwhile."""


class ProbeState(Protocol):
    """What is kept of one probe."""

    @property
    def seen(self) -> int:
        """How many of the probe's tokens passed by."""
        ...


Kept = TypeVar("Kept", bound=ProbeState)


class ProbeObserver(ABC, Generic[Kept]):
    """Sees the tokens of all probes of one kind, and keeps something of each probe by itself.

    What is kept is bounded: a step with probes begins with at most `capacity`. The oldest goes
    first, which is what requests left behind that were given up before anybody asked for it.
    """

    capacity = _UNREAD

    def __init__(self) -> None:
        self.probes: Mapping[int, RunningProbe] = {}
        self._kept: dict[int, Kept] = {}

    @property
    def looking(self) -> bool:
        """Whether the current step has anything to see."""
        return bool(self.probes)

    def begin(self, probes: Mapping[int, RunningProbe]) -> None:
        """Start a step.

        Args:
            probes: The probes of this kind in the step, by id.
        """
        self.probes = probes
        if probes:
            room = self.capacity - sum(map(self._size, self._kept.values()))
            while room < 0:
                room += self._size(self._kept.pop(next(iter(self._kept))))

    def observe(self, x: Tensor, token_slots: Tensor, place: Place | None) -> None:
        """Look at the tokens of a step.

        Args:
            x: [tokens, width], the states.
            token_slots: [at least tokens], the slot of each token.
            place: Where the states are, None beyond all layers.
        """
        for probe, running in self.probes.items():
            mine = x[token_slots[: x.shape[0]] == running.slot]
            self._kept[probe] = self._add(self._kept.pop(probe, None), mine, running, place)

    def take(self, probes: Sequence[int], tokens: Sequence[int]) -> wire.ProbeResult | None:
        """Return what was observed of probes of the same tokens, and forget it.

        It is None if one did not pass by as it was sent: it was preempted and ran again, or what
        was kept of it has been dropped.
        """
        kept = [self._kept.pop(probe, None) for probe in probes]
        whole = [one for one in kept if one is not None and one.seen == len(tokens)]
        return self._read(whole, tokens) if len(whole) == len(kept) else None

    @abstractmethod
    def _add(
        self, before: Kept | None, x: Tensor, running: RunningProbe, place: Place | None
    ) -> Kept:
        """Return what to keep of a probe after its next tokens.

        Args:
            before: What was kept so far.
            x: [tokens, width], a copy.
            running: The probe.
            place: Where the states are, None beyond all layers.
        """

    @abstractmethod
    def _read(self, kept: Sequence[Kept], tokens: Sequence[int]) -> wire.ProbeResult | None:
        """Return the result of probes that passed by as they were sent."""

    def _size(self, _: Kept) -> int:
        """Return how much of the capacity one probe takes."""
        return 1
