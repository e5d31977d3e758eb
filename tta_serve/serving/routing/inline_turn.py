"""Turns whose mix is decided inside the pass that answers them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vllm.lora.request import LoRARequest

from adapters.bank.token_gating import Gating
from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.selector import InlineSelector
from router.policies.token_gated import GatedPolicy
from router.policy import Policy
from router.scoring.heads import Head
from tta_serve import metrics
from tta_serve.engine.client.engine_client import UndecidedRequest
from tta_serve.engine.wire import (
    InlineDecision,
    make_conversation_request,
    make_undecided_request,
    write_mix,
)
from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.conversations import Conversation, Conversations, RememberedDecision
from tta_serve.serving.routing.decision import DecisionTrace, describe_decision, reuse_mix
from tta_serve.serving.routing.probe_cache import ViewProbe


class InstalledPolicy(NamedTuple):
    """A policy that the engine decides by."""

    selector: InlineSelector
    heads: tuple[Head, ...]
    rules: MixRules
    wire: str
    """The engine's name for it."""
    gating: Gating | None
    """Of what it decides."""

    @classmethod
    async def into(cls, engine: ViewProbe, policy: Policy, rules: MixRules) -> "InstalledPolicy":
        """Hand a policy to the engine.

        Raises RouterError if it cannot decide inside a pass, or the engine refuses it.
        """
        selector, gating = (
            (policy.selector, policy.gating) if isinstance(policy, GatedPolicy) else (policy, None)
        )
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
        return cls(selector, heads, rules, await engine.install(heads, rules), gating)

    def decision(self, made: InlineDecision) -> Decision:
        """Return what the engine decided; the policy says what its scores mean."""
        names = self.heads[made.head].names
        scores = dict(zip(names, made.scores, strict=True))
        selection = self.selector.judge(made.head, scores, made.floor)
        units = zip(names, made.units, strict=True)
        mix = self.rules.mix({name: number * self.rules.grid for name, number in units})
        return Decision(
            mix, selection.scores, mix.is_base, selection.reason, selection.floor
        ).with_gating(self.gating)


@dataclass
class InlineTurn:
    """A turn whose mix the pass that answers it decides.

    The first turn of a conversation starts undecided. A later one starts with the conversation's
    mix and cache, and the pass says what it would have decided for it: if the policy then holds
    that the topic has changed, the request starts anew, as a conversation of its own.
    """

    wish: Wish
    policy: InstalledPolicy
    policy_name: str
    turn: Turn
    before: RememberedDecision | None
    """What was decided for the turn before, with whose mix this one begins."""
    digests: Mapping[str, str]
    """The digest of each expert by its name."""
    conversations: Conversations
    router_ms: float
    info: MergeInfo | None = None
    """What was decided, None until the pass has said it."""
    _started: LoRARequest = field(init=False)
    """What the engine began to run it as."""

    def start(self, prompt: Prompt) -> UndecidedRequest:
        """Return how the engine is to run the turn."""
        self._started = self._adapter()
        text = prompt.user_turn if prompt.chat else None
        return UndecidedRequest(self._started, text, self.settle, follows=self.before is not None)

    def _adapter(self) -> LoRARequest:
        if self.before is None:
            return make_undecided_request(self.policy.wire, self.policy.gating)
        conversation = self.before.conversation
        assert conversation is not None
        return self._conversation(conversation.name, self.before.decision.mix, conversation.since)

    def _conversation(self, name: str | None, mix: Mix, since: int = 0) -> LoRARequest:
        return make_conversation_request(
            name, write_mix(mix, self.digests), since, self.policy.wire, self.policy.gating
        )

    def settle(self, made: InlineDecision | None) -> LoRARequest | None:
        """Take what the pass decided, None if the turn could not be read.

        Returns how the request is to start anew, if the topic has changed.
        """
        if self.info is not None:
            return None  # another sample or beam of the same request
        if self.before is not None:
            return self._followed(self.before, made)
        if made is None:
            unread = Decision(
                Mix(), abstained=True, reason="not all of the turn passed by: the base answers"
            )
            self._end(DecisionTrace(unread, fallback="base"), None)
            return None
        decision = self.policy.decision(made)
        self._end(DecisionTrace(decision), Conversation(self._started.lora_name, made.since))
        return None

    def _followed(
        self, before: RememberedDecision, made: InlineDecision | None
    ) -> LoRARequest | None:
        then = before.decision
        if made is None:
            same = replace(
                then, scores={}, reason="the mix of an earlier turn; this one was in the cache"
            )
            self._end(DecisionTrace(same, reused=True), before.conversation)
            return None
        now = self.policy.decision(made)
        if self.policy.selector.should_move(then, now):
            adapter = self._conversation(None, now.mix)
            self._end(DecisionTrace(now), Conversation(adapter.lora_name))
            return adapter
        self._end(reuse_mix(then, now), before.conversation)
        return None

    def _end(self, trace: DecisionTrace, conversation: Conversation | None) -> None:
        self.info = describe_decision(self.wish, trace, self.digests, self.router_ms)
        metrics.observe_decision(self.info, trace.decision.mix)
        if self.turn.here and conversation:
            if trace.reused:
                kept = self.before
            else:
                kept = RememberedDecision.of(trace.decision, self.digests, conversation)
            assert kept is not None
            self.conversations.keep((self.policy_name, self.turn.here), kept)
