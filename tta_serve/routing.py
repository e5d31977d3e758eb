"""From a request to a mix, within the policy's deadline."""

import asyncio
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.errors import AdapterError
from router.policy import Context, Decision, Policy, Prompt, RouterError
from router.table import check_options, create_policy
from tta_serve.catalog import Ask
from tta_serve.config import ServeConfig
from tta_serve.decided import Made, Routed, rounded
from tta_serve.engine.client import ProbeError
from tta_serve.engine.wire import mix_request
from tta_serve.inline import InlineTurn, Installed
from tta_serve.probes import ViewProbe
from tta_serve.protocol import Explained, RequestError
from tta_serve.serving.request import Turn
from tta_serve.sessions import Kept, Sessions


class _Unusable(Exception):
    """A policy refuses the experts that are served now."""


_NO_DECISION = (TimeoutError, ProbeError, _Unusable)


@dataclass(frozen=True)
class Router:
    """The configured policies, ready to decide.

    unusable: those that refuse the experts served now, and why   inline: those that the engine decides by, inside the pass
    """

    config: ServeConfig
    policies: Mapping[str, Policy]
    unusable: Mapping[str, str]
    probe: ViewProbe
    sessions: Sessions
    inline: Mapping[str, Installed] = field(default_factory=dict)

    @classmethod
    async def create(
        cls, config: ServeConfig, context: Context, probe: ViewProbe, sessions: Sessions, must: Collection[str]
    ) -> "Router":
        """Build every policy on the context; `probe` is for the requests.

        Raises RouterError if one of those that `must` work refuses the library as it is; any other is unusable then.
        """
        policies: dict[str, Policy] = {}
        unusable, inline = {}, {}
        for name, policy in config.policies.items():
            try:
                made = await create_policy(policy.type, policy.options, replace(context, inline=policy.inline))
                if policy.inline:
                    inline[name] = await Installed.into(probe, made, context.rules)
                policies[name] = made
            except (RouterError, AdapterError) as error:
                if name in must:
                    raise RouterError(f"policy {name!r}: {error}") from None
                unusable[name] = str(error)
        return cls(config, policies, unusable, probe, sessions, inline)

    async def route(self, ask: Ask, prompt: Prompt, turn: Turn) -> Routed:
        """Decide, or have the engine decide; a policy that is late, whose probe failed or that is unusable is replaced by its
        named fallback.

        A turn that follows another keeps its mix, unless the policy says that the topic has changed.
        Raises RequestError as `_decide`.
        """
        start = time.perf_counter()
        routed = Routed(ask.label, ask.arm, ask.ticket, warnings=ask.warnings)
        if ask.mix is not None:
            made = Made(Decision(ask.mix))
        else:
            assert ask.policy is not None
            name = ask.policy
            if name in self.inline and prompt.in_prompt and prompt.user_turn.strip():
                return self._undecided(routed, name, prompt, turn, start)
            made = await self._in_turn(name, prompt, turn)
        routed.adapter = mix_request(made.decision.mix, self.probe.digests, made.decision.gating)
        routed.decide(made, self.probe.digests, _ms_since(start))
        return routed

    def _undecided(self, routed: Routed, name: str, prompt: Prompt, turn: Turn, start: float) -> Routed:
        """Leave the decision to the pass."""
        before = self._before(name, turn)
        if before is not None and before.conversation is None:
            before = None
        turn_ = InlineTurn(routed, self.inline[name], name, turn, before, self.probe.digests, self.sessions, _ms_since(start))
        routed.adapter = turn_.undecided(prompt)
        return routed

    def _before(self, name: str, turn: Turn) -> Kept | None:
        """What was decided for the turn before, if its experts are still what they were."""
        before = self.sessions.find((name, turn.before)) if turn.before else None
        return before if before and before.holds(self.probe.digests) else None

    def listed(self) -> dict[str, Any]:
        """Every policy with all its options, and which one is the default."""
        policies = [
            policy.model_dump() | {"name": name, "options": check_options(policy.type, policy.options).model_dump(mode="json")}
            for name, policy in self.config.policies.items()
        ]
        return {"default": self.config.default_policy, "policies": policies, "unusable": dict(self.unusable)}

    async def explain(self, prompt: Prompt, names: Sequence[str] | None) -> list[Explained]:
        """What the named policies, or all, would do with a prompt that begins a conversation.

        Raises RequestError for a name without a policy.
        """
        known = self.config.policies
        for name in names or ():
            if name not in known:
                raise RequestError(f"there is no policy {name!r}; there are: {', '.join(known)}", param="policies")
        return [await self._explained(name, prompt) for name in names or known]

    async def _explained(self, name: str, prompt: Prompt) -> Explained:
        start, probe = time.perf_counter(), self.probe.counting()
        made = await self._or_fallback(name, prompt, probe)
        decision = made.decision
        return Explained(
            policy=name,
            experts=decision.mix.as_json(),
            gating=decision.gating,
            scores=rounded(decision.scores),
            floor=decision.floor if math.isfinite(decision.floor) else None,
            abstained=decision.abstained,
            reason=decision.reason,
            fallback=made.fallback,
            router_ms=_ms_since(start),
            passes=probe.passes,
        )

    async def _in_turn(self, name: str, prompt: Prompt, turn: Turn) -> Made:
        before = self._before(name, turn)
        if before is not None:
            made, kept = await self._follow_up(name, prompt, before)
        else:
            made = await self._or_fallback(name, prompt, self.probe)
            kept = Kept.of(made.decision, self.probe.digests)
        if turn.here and made.fallback is None:
            self.sessions.keep((name, turn.here), kept)
        return made

    async def _follow_up(self, name: str, prompt: Prompt, before: Kept) -> tuple[Made, Kept]:
        """The decision for a turn after another, and what the turn after it must know."""
        then = before.decision
        try:
            now = await self._decide(name, prompt, self.probe)
        except _NO_DECISION as error:
            same = replace(then, scores={}, reason=f"the mix of an earlier turn, since {_why(error)}")
            return Made(same, kept=True), before
        if self.policies[name].moved(then, now):
            return Made(now), Kept.of(now, self.probe.digests)
        same = replace(then, scores=now.scores, reason=f"the mix of an earlier turn; of this one alone: {now.reason}")
        return Made(same, kept=True), before

    async def _or_fallback(self, name: str, prompt: Prompt, probe: ViewProbe) -> Made:
        try:
            return Made(await self._decide(name, prompt, probe))
        except _NO_DECISION as error:
            fallback = self.config.policies[name].fallback
            found = await self._decide(fallback, prompt, probe)
            return Made(replace(found, reason=f"{found.reason}; by {fallback}, since {_why(error)}"), fallback)

    async def _decide(self, name: str, prompt: Prompt, probe: ViewProbe) -> Decision:
        """Raises one of _NO_DECISION, or RequestError if the policy cannot do what this request wants of it."""
        if name in self.unusable:
            raise _Unusable(f"{name} cannot work with the experts served now: {self.unusable[name]}")
        try:
            return await asyncio.wait_for(self.policies[name].route(prompt, probe), self.config.policies[name].deadline_s)
        except RouterError as error:
            raise RequestError(f"policy {name!r}: {error}", param="merge") from None


def _why(error: Exception) -> str:
    return "the policy was late" if isinstance(error, TimeoutError) else str(error)


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
