"""From a request to a mix, within the policy's deadline."""

import asyncio
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.errors import AdapterError
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policy import Context, Policy
from router.registry import check_options, create_policy
from tta_serve import metrics
from tta_serve.config import ServeConfig
from tta_serve.engine.client.engine_client import ProbeError
from tta_serve.engine.wire import make_mix_request
from tta_serve.exceptions import RequestError
from tta_serve.protocol import Explained
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.conversations import Conversations, RememberedDecision
from tta_serve.serving.routing.decision import (
    DecisionTrace,
    describe_decision,
    reuse_mix,
    round_scores,
)
from tta_serve.serving.routing.inline_turn import InlineTurn, InstalledPolicy
from tta_serve.serving.routing.probe_cache import ViewProbe
from tta_serve.serving.routing.route import RequestRoute


class _Unusable(Exception):
    """A policy refuses the experts that are served now."""


_NO_DECISION = (TimeoutError, ProbeError, _Unusable)


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

        Raises RouterError if one of those that `must` work refuses the library as it is; any other
        is unusable then.
        """
        policies: dict[str, Policy] = {}
        unusable = {}
        inline = {}
        for name, policy in config.policies.items():
            try:
                made = await create_policy(
                    policy.type, policy.options, replace(context, inline=policy.inline)
                )
                if policy.inline:
                    inline[name] = await InstalledPolicy.into(probe, made, context.rules)
                policies[name] = made
            except (RouterError, AdapterError) as error:
                if name in must:
                    raise RouterError(f"policy {name!r}: {error}") from None
                unusable[name] = str(error)
        return cls(config, policies, unusable, probe, conversations, inline)

    async def route(self, wish: Wish, prompt: Prompt, turn: Turn) -> RequestRoute:
        """Decide a prompt's mix, or have the engine decide it inside the pass.

        A policy that is late, whose probe failed or that is unusable is replaced by its named
        fallback. A turn that follows another keeps its mix, unless the policy says that the topic
        has changed.

        Raises RequestError if the policy cannot do what this request wants of it.
        """
        start = time.perf_counter()
        if wish.mix is not None:
            trace = DecisionTrace(Decision(wish.mix))
        else:
            assert wish.policy is not None
            if wish.policy in self.inline and prompt.in_prompt and prompt.user_turn.strip():
                return self._leave_to_pass(wish, wish.policy, prompt, turn, start)
            trace = await self._decide_turn(wish.policy, prompt, turn)

        decision = trace.decision
        adapter = make_mix_request(decision.mix, self.probe.digests, decision.gating)
        info = describe_decision(wish, trace, self.probe.digests, _ms_since(start))
        metrics.observe_decision(info, decision.mix)
        return RequestRoute(wish, adapter, decided=info)

    def _leave_to_pass(
        self, wish: Wish, name: str, prompt: Prompt, turn: Turn, start: float
    ) -> RequestRoute:
        before = self._before(name, turn)
        if before is not None and before.conversation is None:
            before = None
        inline_turn = InlineTurn(
            wish=wish,
            policy=self.inline[name],
            policy_name=name,
            turn=turn,
            before=before,
            digests=self.probe.digests,
            conversations=self.conversations,
            router_ms=_ms_since(start),
        )
        return RequestRoute(wish, inline_turn.start(prompt), turn=inline_turn)

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
            gating=decision.gating,
            scores=round_scores(decision.scores),
            floor=decision.floor if math.isfinite(decision.floor) else None,
            abstained=decision.abstained,
            reason=decision.reason,
            fallback=trace.fallback,
            router_ms=_ms_since(start),
            passes=probe.passes,
        )

    async def _decide_turn(self, name: str, prompt: Prompt, turn: Turn) -> DecisionTrace:
        before = self._before(name, turn)
        if before is not None:
            trace, kept = await self._follow_up(name, prompt, before)
        else:
            trace = await self._or_fallback(name, prompt, self.probe)
            kept = RememberedDecision.of(trace.decision, self.probe.digests)
        if turn.here and trace.fallback is None:
            self.conversations.keep((name, turn.here), kept)
        return trace

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
        try:
            return await asyncio.wait_for(
                self.policies[name].route(prompt, probe), self.config.policies[name].deadline_s
            )
        except RouterError as error:
            raise RequestError(f"policy {name!r}: {error}", param="merge") from None


def _why(error: Exception) -> str:
    return "the policy was late" if isinstance(error, TimeoutError) else str(error)


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
