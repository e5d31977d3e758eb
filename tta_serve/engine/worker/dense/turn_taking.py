"""Whose turn it is, where the requests of one key at a time can run."""

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

WORTH = 8
"""A turn is at least so many times as long as the switch before it, if nobody waits too long."""
_FADE = 0.7


class TurnTaking(Generic[Key]):
    """Gives keys turns, the one that has waited longest first.

    A turn goes on for WORTH times a switch, so that switches take a ninth of the time; but the time
    that is left until somebody has waited too long is shared, in equal parts, by those whose turn
    comes before and the one whose turn it is: if the j-th to wait must have its turn by t_j, a turn
    that began at t_0 ends by min_j (t_j - t_0) / j, less a switch and a step. So none waits longer
    than the bound, as long as it is longer than a switch and two steps for each key.

    Attributes:
        active: Whose turn it is, None before the first.
        switch_s: What a switch takes.
    """

    def __init__(self, max_wait_s: float) -> None:
        """Start without keys.

        Args:
            max_wait_s: The bound.
        """
        self.active: Key | None = None
        self.switch_s = 0.0
        self._bound = max_wait_s
        self._began = 0.0
        self._stuck = False
        self._since: dict[Key, float] = {}  # those that wait, in the order of their turns
        self._step_s = 0.0
        self._last = 0.0

    def choose(self, ready: Collection[Key], now: float) -> Key | None:
        """Return whose turn it is, of those that have something to run; None if nobody has.

        Args:
            ready: The keys.
            now: The time, in seconds.
        """
        # Who waits, and how long does a step take?
        self._note_time(now)
        self._since = {key: since for key, since in self._since.items() if key in ready}
        for key in ready:
            if key != self.active:
                self._since.setdefault(key, now)

        # Is the turn over?
        if not self._since:
            self._stuck = False
            return self.active if self.active in ready else None
        if self.active in ready and not self._stuck and now < self._find_end():
            return self.active
        if self.active in ready and self.active is not None:
            self._since[self.active] = now
        self.active = next(iter(self._since))
        del self._since[self.active]
        self._began = now
        self._stuck = False
        return self.active

    def pass_on(self) -> None:
        """Take note that whose turn it is can run nothing."""
        self._stuck = True

    def note_switch(self, seconds: float) -> None:
        """Take note of what a switch took."""
        known = self.switch_s
        self.switch_s = _FADE * known + (1 - _FADE) * seconds if known else seconds

    def _note_time(self, now: float) -> None:
        """Remember the longest of the last steps; a rest is none."""
        step = min(now - self._last, self._bound / 4)
        self._step_s = max(step, _FADE * self._step_s)
        self._last = now

    def _find_end(self) -> float:
        share = min(
            (since + self._bound - self._began) / place
            for place, since in enumerate(self._since.values(), 1)
        )
        return self._began + min(WORTH * self.switch_s, share - self.switch_s - 2 * self._step_s)
