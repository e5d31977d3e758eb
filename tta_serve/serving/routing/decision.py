"""A decision: how it was reached, what an answer says of it, what later turns remember of it."""

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

from router.decision import Decision
from tta_serve.engine.client.placement import PromptHistory
from tta_serve.engine.wire import make_mix_key
from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish

_MOST_SCORES = 8
_SHOWN_OF_KEY = 16


@dataclass(frozen=True)
class DecisionTrace:
    """A decision and how it was reached."""

    decision: Decision
    fallback: str | None = None
    """The policy that answered because the chosen one could not."""
    reused: bool = False
    """Whether the mix was kept from an earlier turn of the conversation."""

    @property
    def rounding(self) -> float | None:
        """How far the grid moved the decision's farthest coefficient, None if it did not now."""
        return None if self.reused else self.decision.rounding


def reuse_mix(before: Decision, now: Decision) -> DecisionTrace:
    """Return the mix of an earlier turn, with what would have been decided for this one alone.

    Where this one is to be answered in segments, those of other mixes come after it.
    """
    reason = f"the mix of an earlier turn; of this one alone: {now.reason}"
    others = tuple(mix for mix in (now.mix, *now.then) if mix != before.mix) if now.then else ()
    kept = replace(before, scores=now.scores, reason=reason, then=others)
    return DecisionTrace(kept, reused=True)


def describe_decision(
    wish: Wish, trace: DecisionTrace, digests: Mapping[str, str], router_ms: float
) -> MergeInfo:
    """Return what the answer says of a decision.

    Args:
        digests: The digest of each expert by its name.
        router_ms: Milliseconds until the mix was known.
    """
    decision = trace.decision
    if decision.mix.is_base:
        key = "base"
    else:
        key = make_mix_key(decision.mix, digests, decision.gating)[:_SHOWN_OF_KEY]

    return MergeInfo(
        policy=wish.label,
        arm=wish.arm,
        request_id=wish.ticket,
        experts=decision.mix.as_json(),
        mix=key,
        gating=decision.gating,
        abstained=decision.abstained,
        kept=trace.reused,
        batch=decision.batch,
        fallback=trace.fallback,
        scores=_best(decision.scores),
        reason=decision.reason,
        router_ms=router_ms,
        warnings=list(wish.warnings),
    )


def describe_undecided(wish: Wish) -> MergeInfo:
    """Return what the answer says of a request that ended before its mix was decided.

    That happens to one that ends before its first token, if the pass was to decide.
    """
    reason = "it ended before it was decided"
    return MergeInfo(policy=wish.label, arm=wish.arm, experts={}, mix="undecided", reason=reason)


def round_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the finite scores, which are all that JSON can say, at four decimal places."""
    return {name: round(score, 4) for name, score in scores.items() if math.isfinite(score)}


def _best(scores: Mapping[str, float]) -> dict[str, float]:
    known = round_scores(scores)
    best = heapq.nlargest(_MOST_SCORES, known, key=lambda name: known[name])
    return {name: known[name] for name in best}


@dataclass(frozen=True)
class RememberedDecision:
    """What was decided for a turn, and the digests of the experts in its mix.

    Of several segments the first one counts.
    """

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
        used = {name: digests[name] for name, _ in decision.mix.coefficients}
        return cls(replace(decision, then=()), used, history)

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
