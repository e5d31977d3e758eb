"""Turns whose mix is decided inside the pass that answers them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from vllm.lora.request import LoRARequest

from adapters.gating import Gating
from adapters.mix import Mix, MixRules
from router.gated import GatedPolicy
from router.inline import Head
from router.policy import Decision, InlineSelector, Policy, Prompt, RouterError
from tta_serve.decided import Made, Routed
from tta_serve.engine.client import Undecided
from tta_serve.engine.wire import Said, content, conversation_request, undecided_request
from tta_serve.probes import ViewProbe
from tta_serve.serving.request import Turn
from tta_serve.sessions import Conversation, Kept, Sessions


class Installed(NamedTuple):
    """A policy that the engine decides by. wire: the engine's name for it   gating: of what it decides"""

    policy: InlineSelector
    heads: tuple[Head, ...]
    rules: MixRules
    wire: str
    gating: Gating | None

    @classmethod
    async def into(cls, engine: ViewProbe, policy: Policy, rules: MixRules) -> "Installed":
        """Hand a policy to the engine. Raises RouterError if it cannot decide inside a pass, or the engine refuses it."""
        selector, gating = (policy.selector, policy.gating) if isinstance(policy, GatedPolicy) else (policy, None)
        if not isinstance(selector, InlineSelector):
            raise RouterError("it cannot decide inside a pass; policies of type retrieval and gate can")
        if rules.minimum > 0 or rules.maximum < 1:
            raise RouterError(f"its shares lie in [0, 1], mix.minimum and mix.maximum are {rules.minimum}, {rules.maximum}")
        heads = selector.heads()
        return cls(selector, heads, rules, await engine.install(heads, rules), gating)

    def decision(self, said: Said) -> Decision:
        """What the engine decided; the policy says what its scores mean."""
        names = self.heads[said["head"]].names
        selection = self.policy.judged(said["head"], dict(zip(names, said["scores"], strict=True)), said["floor"])
        mix = self.rules.mix({name: units * self.rules.grid for name, units in zip(names, said["units"], strict=True)})
        return Decision(mix, selection.scores, mix.is_base, selection.reason, selection.floor).gated(self.gating)


@dataclass(frozen=True)
class InlineTurn:
    """A turn on its way. key: of its policy, for the sessions   before: of an earlier turn, whose mix it begins with

    The first turn of a conversation starts undecided. A later one starts with the conversation's mix and cache, and the pass
    says what it would have decided for it: if the policy then holds that the topic has changed, the request starts anew, as a
    conversation of its own.
    """

    routed: Routed
    installed: Installed
    key: str
    turn: Turn
    before: Kept | None
    digests: Mapping[str, str]
    sessions: Sessions
    router_ms: float

    def undecided(self, prompt: Prompt) -> Undecided:
        """How the engine is to run it."""
        text = prompt.user_turn if prompt.chat else None
        return Undecided(self._adapter(), text, self.settle, follows=self.before is not None)

    def _adapter(self) -> LoRARequest:
        if self.before is None:
            return undecided_request(self.installed.wire, self.installed.gating)
        conversation = self.before.conversation
        assert conversation is not None
        return self._conversation(conversation.name, self.before.decision.mix, conversation.since)

    def _conversation(self, name: str | None, mix: Mix, since: int = 0) -> LoRARequest:
        return conversation_request(name, content(mix, self.digests), since, self.installed.wire, self.installed.gating)

    def settle(self, said: Said | None) -> LoRARequest | None:
        """Take what the pass said. Returns how the request is to start anew, if the topic has changed."""
        if self.routed.info is not None:  # another sample or beam of the same request
            return None
        if self.before is not None:
            return self._followed(self.before, said)
        if said is None:
            unread = Decision(Mix(), abstained=True, reason="not all of the turn passed by: the base answers")
            self._end(Made(unread, fallback="base"), None)
            return None
        decision = self.installed.decision(said)
        adapter = self.routed.adapter
        assert isinstance(adapter, Undecided)
        self._end(Made(decision), Conversation(adapter.adapter.lora_name, said["since"]))
        return None

    def _followed(self, before: Kept, said: Said | None) -> LoRARequest | None:
        then = before.decision
        if said is None:
            same = replace(then, scores={}, reason="the mix of an earlier turn; this one was in the cache")
            self._end(Made(same, kept=True), before.conversation)
            return None
        now = self.installed.decision(said)
        if self.installed.policy.moved(then, now):
            adapter = self._conversation(None, now.mix)
            self._end(Made(now), Conversation(adapter.lora_name))
            return adapter
        same = replace(then, scores=now.scores, reason=f"the mix of an earlier turn; of this one alone: {now.reason}")
        self._end(Made(same, kept=True), before.conversation)
        return None

    def _end(self, made: Made, conversation: Conversation | None) -> None:
        self.routed.decide(made, self.digests, self.router_ms)
        if self.turn.here and conversation:
            kept = self.before if made.kept else Kept.of(made.decision, self.digests, conversation)
            assert kept is not None
            self.sessions.keep((self.key, self.turn.here), kept)
