"""Turns whose mix is decided inside the pass that answers them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from adapters.bank.token_gating import Gating
from adapters.coefficient import Coefficient
from adapters.mix import Mix, MixRules
from router.decision import ActsFrom, Decision
from router.errors import RouterError
from router.policies.selector import InlineSelector
from router.policies.token_gated import GatedPolicy
from router.policies.twin import TwinPolicy
from router.policy import Policy
from router.scoring.blend import find_rounding
from router.scoring.heads import Head
from tta_serve import metrics
from tta_serve.engine.client.engine_client import UndecidedRequest
from tta_serve.engine.client.placement import PromptHistory, PromptPlacer, UserTurns
from tta_serve.engine.wire import (
    EarlierMix,
    InlineDecision,
    TurnBefore,
    acting_from,
    make_undecided_request,
    with_turn,
)
from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.decision import (
    Conversations,
    DecisionTrace,
    RememberedDecision,
    describe_decision,
    reuse_mix,
)
from tta_serve.serving.routing.probe_cache import ViewProbe


class InstalledPolicy(NamedTuple):
    """A policy that the engine decides by."""

    selector: InlineSelector
    heads: tuple[Head, ...]
    rules: MixRules
    wire: str
    """The engine's name for it."""
    finish: Callable[[Decision], Decision] = lambda decision: decision
    """Makes the policy's decision of its selector's."""
    gating: Gating | None = None
    """Of what it decides."""

    @classmethod
    async def into(cls, engine: ViewProbe, policy: Policy, rules: MixRules) -> "InstalledPolicy":
        """Hand a policy to the engine.

        Raises RouterError if it cannot decide inside a pass, or the engine refuses it.
        """
        around = policy if isinstance(policy, GatedPolicy | TwinPolicy) else None
        selector = around.selector if around else policy
        if not isinstance(selector, InlineSelector):
            raise RouterError(
                "it cannot decide inside a pass; policies of type retrieval and gate can"
            )
        if rules.minimum > 0 or rules.maximum < 1:
            raise RouterError(
                f"its shares lie in [0, 1], mix.minimum and mix.maximum are {rules.minimum},"
                f" {rules.maximum}"
            )
        heads = selector.make_heads()
        if around is None:
            return cls(selector, heads, rules, await engine.install(heads, rules))
        heads = around.finish_heads(heads)
        gating = around.gating if isinstance(around, GatedPolicy) else None
        installed = await engine.install(heads, rules)
        return cls(selector, heads, rules, installed, around.finish, gating)

    def decision(self, made: InlineDecision) -> Decision:
        """Return what the engine decided; the policy says what its scores mean."""
        names = self.heads[made.head].names
        scores = dict(zip(names, made.scores, strict=True))
        selection = self.selector.judge(made.head, scores, made.floor, made.several)
        units = zip(names, made.units, strict=True)
        mix = self.rules.mix({name: number * self.rules.grid for name, number in units})
        return self.finish(
            Decision(
                mix,
                selection.scores,
                mix.is_base,
                selection.reason,
                selection.floor,
                then=self.selector.list_later_mixes(selection),
                rounding=find_rounding(selection.weights, mix),
            )
        )


@dataclass
class InlineTurn:
    """A turn whose mix the pass that answers it decides.

    The mix acts from this turn on, after what the conversation's earlier turns ran as. The mix of
    the turn before holds unless the pass finds that the topic has changed.
    """

    wish: Wish
    policy: InstalledPolicy
    policy_name: str
    turn: Turn
    before: RememberedDecision | None
    """What was decided for the turn before."""
    digests: Mapping[str, str]
    """The digest of each expert by its name."""
    conversations: Conversations
    acts_from: ActsFrom
    """Where the mix of a first turn acts."""
    router_ms: float
    info: MergeInfo | None = None
    """What was decided, None until the pass has said it."""
    then: tuple[Mix, ...] = ()
    """The mixes that answer after it, known when `info` is."""

    @property
    def may_go_on(self) -> bool:
        """Whether other mixes may answer after it."""
        return self.policy.selector.makes_segments

    def place(
        self, placer: PromptPlacer, tokens: Sequence[int], turns: UserTurns
    ) -> UndecidedRequest:
        """Return how the engine is to run a prompt."""
        history = self.before.find_history(self.digests) if self.before else None
        placed = placer.place(tokens, self.acts_from, turns, history)
        start = min(placed.start, placed.turn[0])  # what is read must not be another's in the cache
        request = make_undecided_request(self.policy.wire, self.policy.gating, self._before())
        adapter = with_turn(acting_from(request, start, placed.earlier), placed.turn)
        own = EarlierMix(start, adapter.lora_name, {}, upper=True, gating=self.policy.gating)

        def remember(decision: Decision, since: int) -> PromptHistory:
            mix = self._by_digest(decision.mix)
            ran = own._replace(mix=mix, since=since)
            return PromptHistory.of(tokens, (*placed.earlier, ran))

        settle = partial(self._settle, acts_from=placed.acts_from, remember=remember)
        return UndecidedRequest(adapter, settle)

    def _before(self) -> TurnBefore | None:
        if self.before is None:
            return None
        decision = self.before.decision
        choice = self.digests.get(decision.choice) if decision.choice else None
        return TurnBefore(self._by_digest(decision.mix), choice)

    def _by_digest(self, mix: Mix) -> dict[str, Coefficient]:
        return {self.digests[name]: c for name, c in mix.coefficients}

    def _settle(
        self,
        made: InlineDecision | None,
        acts_from: ActsFrom,
        remember: Callable[[Decision, int], PromptHistory],
    ) -> None:
        """Take what the pass decided, None if the turn could not be read."""
        if self.info is not None:
            return  # another sample or beam of the same request, or a later output
        trace = self._trace(made)
        self.info = describe_decision(self.wish, trace, self.digests, self.router_ms)
        self.info.acts_from = acts_from
        self.then = trace.decision.then
        metrics.observe_decision(self.info, trace.decision.mix, trace.rounding)

        # A turn that could not be read decides nothing that could be kept.
        if self.turn.here and (made is not None or self.before is not None):
            decided = self.before.decision if self.before and trace.reused else trace.decision
            history = remember(decided, made.since if made is not None else 0)
            kept = RememberedDecision.of(decided, self.digests, history)
            self.conversations.keep((self.policy_name, self.turn.here), kept)

    def _trace(self, made: InlineDecision | None) -> DecisionTrace:
        if made is None and self.before is None:
            reason = "not all of the turn passed by: the base answers"
            return DecisionTrace(Decision(Mix(), abstained=True, reason=reason), fallback="base")
        if made is None:
            assert self.before is not None
            reason = "the mix of an earlier turn; not all of this one passed by"
            return DecisionTrace(
                replace(self.before.decision, scores={}, reason=reason), reused=True
            )
        now = self.policy.decision(made)
        if made.kept and self.before is not None:
            return reuse_mix(self.before.decision, now)
        return DecisionTrace(now)
