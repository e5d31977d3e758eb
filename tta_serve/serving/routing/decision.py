"""A decision, how it was reached, and what an answer says of it."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.decision import Decision
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


def reuse_mix(then: Decision, now: Decision) -> DecisionTrace:
    """Return the mix of an earlier turn, with what would have been decided for this one alone."""
    reason = f"the mix of an earlier turn; of this one alone: {now.reason}"
    return DecisionTrace(replace(then, scores=now.scores, reason=reason), reused=True)


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
