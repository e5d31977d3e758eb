"""Conversations on the engine that routes inside the pass, held turn by turn as by a replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.mix import Mix
from loadtest.sides.routed import Inlined
from router.scoring.chat_turns import find_turn
from tta_serve.engine import wire
from tta_serve.engine.wire import EarlierMix, InlineDecision, TurnBefore


@dataclass
class Conversation:
    """What was said, and what each part of it ran as."""

    messages: list[dict[str, str]] = field(default_factory=list)
    parts: list[EarlierMix] = field(default_factory=list)
    before: TurnBefore | None = None
    """What was decided for the last turn."""


@dataclass(frozen=True)
class Reply:
    """What came of a turn."""

    mix: Mix
    """What answered."""
    kept: bool
    """Whether it is the mix of the turn before."""
    text: str
    prompt_tokens: int
    cached_tokens: int


class ConversingEngine(Inlined):
    """The side `inline`, with room for long system prompts."""

    max_model_len = 2048

    def say(self, conversation: Conversation, text: str, tokens: int = 48) -> Reply:
        """Say the next turn of a conversation, whose mix the pass decides."""
        conversation.messages.append({"role": "user", "content": text})
        prompt = self.encode(conversation.messages)
        turn = self._find(prompt, text)
        adapter = wire.acting_from(self.new_turn(conversation.before), turn[0], conversation.parts)
        [output] = self.generate_routed([prompt], [adapter], tokens, [turn], ignore_eos=False)

        # What answered: the mix of the turn before, or another.
        decision = wire.take_decision(output)
        assert decision is not None, "the turn was read"
        kept = decision.kept and conversation.before is not None
        if not kept:
            conversation.before = self._remember(decision)
        assert conversation.before is not None
        mix = dict(conversation.before.mix)
        conversation.parts.append(
            EarlierMix(turn[0], adapter.lora_name, mix, decision.since, upper=True)
        )
        reply = self._decode(output)
        conversation.messages.append({"role": "assistant", "content": reply})
        names = {digest: name for name, digest in self.setup.library.digests.items()}
        return Reply(
            Mix.of({names[digest]: c for digest, c in mix.items()}),
            kept,
            reply,
            len(prompt),
            output.num_cached_tokens,
        )

    def ask(self, system: str, text: str, name: str, tokens: int, *, from_start: bool) -> str:
        """Return an expert's answer, acting from the start or from the user's turn on."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        prompt = self.encode(messages)
        adapter = self.adapter(Mix.of({name: 1.0}))
        assert adapter is not None
        start = 0 if from_start else self._find(prompt, text)[0]
        acting = wire.acting_from(adapter, start)
        [output] = self.generate_routed([prompt], [acting], tokens, ignore_eos=False)
        return self._decode(output)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the tokens of a chat, up to where the answer starts."""
        tokenizer: Any = self.llm.get_tokenizer()
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, output: Any) -> str:
        tokens = output.outputs[0].token_ids
        return str(self.llm.get_tokenizer().decode(tokens, skip_special_tokens=True)).strip()

    def _find(self, prompt: Sequence[int], text: str) -> tuple[int, int]:
        turn = self.llm.get_tokenizer().encode(text.strip(), add_special_tokens=False)
        found = find_turn(prompt, turn)
        assert found is not None
        return found

    def _remember(self, decision: InlineDecision) -> TurnBefore:
        digests = self.setup.library.digests
        mix = self.read_mix(decision).as_dict()
        scores = dict(zip(self.heads[decision.head].names, decision.scores, strict=True))
        choice = digests[max(scores, key=lambda name: scores[name])] if mix else None
        return TurnBefore({digests[name]: c for name, c in mix.items()}, choice)
