"""Conversations: what was decided for the turns before."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from router.decision import Decision
from tta_serve.engine.client.placement import PromptHistory


@dataclass(frozen=True)
class RememberedDecision:
    """What was decided for a turn, and the digests of the experts in its mix."""

    decision: Decision
    digests: Mapping[str, str]
    history: PromptHistory | None = None
    """What the prompt's tokens ran as, None where that is not known."""

    @classmethod
    def of(
        cls,
        decision: Decision,
        digests: Mapping[str, str],
        history: PromptHistory | None = None,
    ) -> "RememberedDecision":
        return cls(
            decision, {name: digests[name] for name, _ in decision.mix.coefficients}, history
        )

    def holds(self, digests: Mapping[str, str]) -> bool:
        """Whether every expert of the mix is still what it was."""
        return all(digests.get(name) == digest for name, digest in self.digests.items())

    def find_history(self, digests: Mapping[str, str]) -> PromptHistory | None:
        """Return what tokens ran as, if all experts of that are still served."""
        if self.history is None:
            return None
        used = {digest for part in self.history.parts for digest in part.mix}
        return self.history if used <= set(digests.values()) else None


class Conversations:
    """What was decided by turn.

    The `most` latest ones are kept, each until nobody has asked for it for `idle_s` seconds.
    """

    def __init__(
        self, most: int, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, RememberedDecision]] = (
            OrderedDict()
        )  # the longest unused first

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable) -> RememberedDecision | None:
        self._forget()
        found = self._kept.get(key)
        return None if found is None else self._put(key, found[1])

    def keep(self, key: Hashable, kept: RememberedDecision) -> None:
        self._put(key, kept)
        self._forget()

    def _put(self, key: Hashable, kept: RememberedDecision) -> RememberedDecision:
        self._kept[key] = self._clock(), kept
        self._kept.move_to_end(key)
        return kept

    def _forget(self) -> None:
        oldest = self._clock() - self._idle_s
        while self._kept and (
            len(self._kept) > self._most or next(iter(self._kept.values()))[0] < oldest
        ):
            self._kept.popitem(last=False)
