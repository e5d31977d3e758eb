"""From a request to a mix, within the policy's deadline."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from adapters.errors import AdapterError
from adapters.mix import Mix
from router.decision import ActsFrom, Decision, Prompt
from router.errors import RouterError
from router.policy import Context, Policy
from router.registry import check_options, create_policy, find_forms
from tta_serve import metrics
from tta_serve.config.sections import PolicyConfig, ServeConfig
from tta_serve.engine.client.engine_client import ProbeError
from tta_serve.engine.client.placement import PromptHistory
from tta_serve.engine.wire import make_mix_request
from tta_serve.exceptions import RequestError
from tta_serve.protocol import Explained, MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.decision import (
    Conversations,
    DecisionTrace,
    RememberedDecision,
    describe_decision,
    reuse_mix,
    round_scores,
)
from tta_serve.serving.routing.inline_turn import InlineTurn, InstalledPolicy
from tta_serve.serving.routing.invoked_mix import InvokedMix
from tta_serve.serving.routing.policy_breaker import PausedError, PolicyBreaker
from tta_serve.serving.routing.probe_cache import ViewProbe
from tta_serve.serving.routing.route import DecidedTurn, RequestRoute

logger = logging.getLogger(__name__)


class _Unusable(Exception):
    """A policy refuses the experts that are served now."""


_FAILURES = (TimeoutError, ProbeError)
_NO_DECISION = (*_FAILURES, _Unusable, PausedError)


class MadeTurn(NamedTuple):
    """A decision for a turn of a conversation."""

    trace: DecisionTrace
    history: PromptHistory | None = None
    """What the turns before ran as."""
    remember: Callable[[PromptHistory], None] = lambda _: None
    """Takes what this one ran as."""


@dataclass(frozen=True)
class PolicyDispatcher:
    """The configured policies, ready to decide."""

    config: ServeConfig
    policies: Mapping[str, Policy]
    unusable: Mapping[str, str]
    """Those that refuse the experts served now, and why."""
    probe: ViewProbe
    conversations: Conversations
    inline: Mapping[str, InstalledPolicy] = field(default_factory=dict)
    """Those that the engine decides by, inside the pass."""
    invocations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The tokens from which on some experts act, by expert."""

    @cached_property
    def _breakers(self) -> dict[str, PolicyBreaker]:
        """Whether each policy is worth asking."""
        paused = metrics.policies_paused
        return {name: PolicyBreaker(paused.labels(name).inc) for name in self.policies}

    @classmethod
    async def create(
        cls,
        config: ServeConfig,
        context: Context,
        probe: ViewProbe,
        conversations: Conversations,
        must: Collection[str],
    ) -> "PolicyDispatcher":
        """Build every policy on the context; `probe` is for the requests.

        A policy chooses among the experts whose forms it can choose.

        Raises RouterError if one of those that `must` work refuses the library as it is; any other
        is unusable then.
        """
        policies: dict[str, Policy] = {}
        unusable = {}
        inline = {}
        for name, policy in config.policies.items():
            try:
                within = narrow_context(name, policy, context)
                made = await create_policy(policy.type, policy.options, within)
                if policy.inline:
                    inline[name] = await InstalledPolicy.into(probe, made, context.rules)
                policies[name] = made
            except (RouterError, AdapterError) as error:
                if name in must:
                    raise RouterError(f"policy {name!r}: {error}") from None
                unusable[name] = str(error)
        return cls(config, policies, unusable, probe, conversations, inline, context.invocations)

    async def route(self, wish: Wish, prompt: Prompt, turn: Turn) -> RequestRoute:
        """Decide a prompt's mix, or have the engine decide it inside the pass.

        A policy that is late, whose probe failed or that is unusable is replaced by its named
        fallback. A turn that follows another keeps its mix, unless the policy says that the topic
        has changed.

        Raises RequestError if the policy cannot do what this request wants of it.
        """
        start = time.perf_counter()
        acts_from = wish.acts_from or self.config.acts_from
        if wish.mix is not None:
            made = MadeTurn(DecisionTrace(Decision(wish.mix, then=wish.then)))
        else:
            assert wish.policy is not None
            within = wish.policy in self.inline and prompt.in_prompt and acts_from != "answer"
            if within and prompt.user_turn.strip():
                inline_turn = InlineTurn(
                    wish=wish,
                    policy=self.inline[wish.policy],
                    policy_name=wish.policy,
                    turn=turn,
                    before=self._before(wish.policy, turn),
                    digests=self.probe.digests,
                    conversations=self.conversations,
                    acts_from=acts_from,
                    router_ms=_ms_since(start),
                )
                return RequestRoute(wish, inline_turn)
            made = await self._decide_turn(wish.policy, prompt, turn)

        decision = made.trace.decision
        for mix in (decision.mix, *decision.then):
            self._check_acts_from(wish, mix)
        info = describe_decision(wish, made.trace, self.probe.digests, _ms_since(start))
        metrics.observe_decision(info, decision.mix, made.trace.rounding)
        return RequestRoute(wish, self._make_turn(made, info, acts_from))

    def make_turn(self, mix: Mix, acts_from: ActsFrom | None) -> DecidedTurn:
        """Return a turn with this mix of which no answer says anything.

        Args:
            mix: The mix.
            acts_from: As the request says.
        """
        info = MergeInfo(policy="", experts={}, mix="")
        made = MadeTurn(DecisionTrace(Decision(mix)))
        return self._make_turn(made, info, acts_from or self.config.acts_from)

    def _make_turn(self, made: MadeTurn, info: MergeInfo, acts_from: ActsFrom) -> DecidedTurn:
        decision = made.trace.decision
        make = partial(
            make_mix_request,
            digests=self.probe.digests,
            gating=decision.gating,
            dense=self.probe.dense,
        )
        mix = decision.mix
        own = {n: self.invocations[n] for n in mix.as_dict() if n in self.invocations}
        invoked = InvokedMix(mix, own, make) if own else None
        return DecidedTurn(
            make(mix),
            info,
            acts_from,
            history=made.history,
            keeps=made.trace.reused,
            remember=made.remember,
            invoked=invoked,
            then=decision.then,
        )

    def _check_acts_from(self, wish: Wish, mix: Mix) -> None:
        """Raise RequestError if a mix that is merged into the weights is to act later."""
        digests = self.probe.digests
        names = mix.as_dict().keys()
        dense = [name for name in names if digests[name] in self.probe.dense]
        if dense and (invoked := names & self.invocations.keys()):
            raise RequestError(
                f"{', '.join(dense)} is dense, and acts on all tokens;"
                f" {', '.join(sorted(invoked))} acts only from its invocation on: no mix has both",
                param="merge",
            )
        if dense and wish.acts_from not in (None, "start"):
            raise RequestError(
                f"merge.acts_from: {', '.join(dense)} is dense, and acts from the start",
                param="merge.acts_from",
            )

    def _before(self, name: str, turn: Turn) -> RememberedDecision | None:
        """What was decided for the turn before, if its experts are still what they were."""
        before = self.conversations.find((name, turn.before)) if turn.before else None
        return before if before and before.holds(self.probe.digests) else None

    def describe(self) -> dict[str, Any]:
        """Every policy with all its options, and which one is the default."""
        policies = [
            policy.model_dump()
            | {
                "name": name,
                "options": check_options(policy.type, policy.options).model_dump(mode="json"),
            }
            for name, policy in self.config.policies.items()
        ]
        return {
            "default": self.config.default_policy,
            "policies": policies,
            "unusable": dict(self.unusable),
        }

    async def explain(self, prompt: Prompt, names: Sequence[str] | None) -> list[Explained]:
        """What the named policies, or all, would do with a prompt that begins a conversation.

        Raises RequestError for a name without a policy.
        """
        known = self.config.policies
        for name in names or ():
            if name not in known:
                raise RequestError(
                    f"there is no policy {name!r}; there are: {', '.join(known)}", param="policies"
                )
        return [await self._explain(name, prompt) for name in names or known]

    async def _explain(self, name: str, prompt: Prompt) -> Explained:
        start = time.perf_counter()
        probe = self.probe.counting()
        trace = await self._or_fallback(name, prompt, probe)
        decision = trace.decision
        return Explained(
            policy=name,
            experts=decision.mix.as_json(),
            then=[mix.as_json() for mix in decision.then],
            gating=decision.gating,
            scores=round_scores(decision.scores),
            floor=decision.floor if math.isfinite(decision.floor) else None,
            abstained=decision.abstained,
            reason=decision.reason,
            fallback=trace.fallback,
            router_ms=_ms_since(start),
            passes=probe.passes,
        )

    async def _decide_turn(self, name: str, prompt: Prompt, turn: Turn) -> MadeTurn:
        before = self._before(name, turn)
        if before is not None:
            trace, kept = await self._follow_up(name, prompt, before)
            history = before.find_history(self.probe.digests)
        else:
            trace = await self._or_fallback(name, prompt, self.probe)
            kept = RememberedDecision.of(trace.decision, self.probe.digests)
            history = None
        if not turn.here or trace.fallback is not None:
            return MadeTurn(trace, history)

        key = name, turn.here
        self.conversations.keep(key, kept)

        def remember(ran: PromptHistory) -> None:
            self.conversations.keep(key, replace(kept, history=ran))

        return MadeTurn(trace, history, remember)

    async def _follow_up(
        self, name: str, prompt: Prompt, before: RememberedDecision
    ) -> tuple[DecisionTrace, RememberedDecision]:
        """The decision for a turn after another, and what the turn after it must know."""
        then = before.decision
        try:
            now = await self._decide(name, prompt, self.probe)
        except _NO_DECISION as error:
            same = replace(
                then, scores={}, reason=f"the mix of an earlier turn, since {_why(error)}"
            )
            return DecisionTrace(same, reused=True), before
        if self.policies[name].should_move(then, now):
            return DecisionTrace(now), RememberedDecision.of(now, self.probe.digests)
        return reuse_mix(then, now), before

    async def _or_fallback(self, name: str, prompt: Prompt, probe: ViewProbe) -> DecisionTrace:
        try:
            return DecisionTrace(await self._decide(name, prompt, probe))
        except _NO_DECISION as error:
            fallback = self.config.policies[name].fallback
            found = await self._decide(fallback, prompt, probe)
            return DecisionTrace(
                replace(found, reason=f"{found.reason}; by {fallback}, since {_why(error)}"),
                fallback,
            )

    async def _decide(self, name: str, prompt: Prompt, probe: ViewProbe) -> Decision:
        """Return the decision of one policy within its deadline.

        Raises one of _NO_DECISION, or RequestError if the policy cannot do what this request wants
        of it.
        """
        if name in self.unusable:
            raise _Unusable(
                f"{name} cannot work with the experts served now: {self.unusable[name]}"
            )
        deadline_s = self.config.policies[name].deadline_s
        try:
            with self._breakers[name].watch(*_FAILURES):
                return await asyncio.wait_for(self.policies[name].route(prompt, probe), deadline_s)
        except RouterError as error:
            raise RequestError(f"policy {name!r}: {error}", param="merge") from None


def _why(error: Exception) -> str:
    return "the policy was late" if isinstance(error, TimeoutError) else str(error)


def narrow_context(name: str, policy: PolicyConfig, context: Context) -> Context:
    """Return the context of a policy, which is to choose experts of forms alone that it can.

    Inside the pass nobody can choose a dense expert, as by then the weights are in use, nor one
    that acts from its invocation on, as that may stand before the turn.
    """
    able = find_forms(policy.type, policy.options) - ({"dense"} if policy.inline else set())
    classes = context.rules.classes
    forms = {expert: context.forms.get(expert, "low_rank") for expert in classes}
    left_out = {
        expert: f"of the forms of experts it knows {', '.join(sorted(able))}"
        for expert, form in forms.items()
        if form not in able
    }
    if policy.inline:
        reason = "it decides inside the pass, and the expert acts from an invocation on"
        left_out |= dict.fromkeys(classes & context.invocations.keys(), reason)
    for expert, reason in sorted(left_out.items()):
        logger.warning("policy %s never chooses %s: %s", name, expert, reason)
    if left_out:
        context = replace(context, rules=context.rules.narrow(classes - left_out.keys()))
    return replace(context, inline=policy.inline)


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
