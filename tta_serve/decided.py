"""What was decided for a request, and what its answer says of it."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

from vllm.lora.request import LoRARequest

from router.policy import Decision
from tta_serve import metrics
from tta_serve.engine.client import Undecided
from tta_serve.engine.wire import mix_key
from tta_serve.protocol import MergeInfo

_SCORES = 8


@dataclass(frozen=True)
class Made:
    """A decision, and how it came about. fallback: the policy that made it instead   kept: its mix is an earlier turn's"""

    decision: Decision
    fallback: str | None = None
    kept: bool = False


@dataclass
class Routed:
    """A request's way through the engine, and what its answer says of it.

    label: what decides   arm, ticket: as `catalog.Ask` has them   adapter: how it is run, None for the base
    warnings: what of the request is not heeded   info: None as long as nothing is decided
    """

    label: str
    arm: str | None = None
    ticket: str | None = None
    adapter: LoRARequest | Undecided | None = None
    info: MergeInfo | None = None
    warnings: tuple[str, ...] = ()

    def decide(self, made: Made, digests: Mapping[str, str], router_ms: float) -> None:
        """Fix what the answer says, and count it. digests: of the experts"""
        decision = made.decision
        self.info = MergeInfo(
            policy=self.label,
            arm=self.arm,
            request_id=self.ticket,
            experts=decision.mix.as_json(),
            mix="base" if decision.mix.is_base else mix_key(decision.mix, digests, decision.gating)[:16],
            gating=decision.gating,
            abstained=decision.abstained,
            kept=made.kept,
            fallback=made.fallback,
            scores=_best(decision.scores),
            reason=decision.reason,
            router_ms=router_ms,
            warnings=list(self.warnings),
        )
        metrics.decided(self.info, decision.mix)

    def told(self) -> MergeInfo:
        """What the answer says. One that ends before its first token ends without a decision, if the pass was to make it."""
        return self.info or MergeInfo(
            policy=self.label, arm=self.arm, experts={}, mix="undecided", reason="it ended before it was decided"
        )


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Those that JSON can say."""
    return {name: round(score, 4) for name, score in scores.items() if math.isfinite(score)}


def _best(scores: Mapping[str, float]) -> dict[str, float]:
    known = rounded(scores)
    return {name: known[name] for name in heapq.nlargest(_SCORES, known, key=lambda name: known[name])}
