"""The mixture's engine with a policy that decides inside the pass, and a reference for it.

The reference is the same policy in plain transformers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from adapters.bank.token_gating import Gating
from adapters.mix import Mix, MixRules
from loadtest.sides.engines import SLOTS, Mixture, Setup
from router.decision import Prompt
from router.policies.gate import GatePolicy
from router.policy import Context
from router.probing import feature_layer
from router.scoring.chat_turns import encode_turn, find_turn
from tta_serve.engine import wire
from tta_serve.engine.client.worker_rpc import Workers
from tta_serve.engine.options import BankOptions
from tta_serve.offline.features_probe import FeaturesProbe
from tta_serve.offline.labelled_prompts import read_labelled


class Inlined(Mixture):
    """The side `mixture` with the demo's gate, and the prefix cache on."""

    name = "inline"
    slots = SLOTS

    def __init__(self, setup: Setup) -> None:
        self.probe = FeaturesProbe(setup.base)
        super().__init__(setup)
        library = setup.library
        self.rules = MixRules(frozenset(library.names), self.probe.layers)
        context = Context(
            self.rules,
            {},
            [],
            self.probe,
            library.digests,
            artifacts=library.root / "router",
            inline=True,
        )
        self.policy = asyncio.run(GatePolicy.create(GatePolicy.Options(), context))
        self.heads = self.policy.make_heads()
        self._installed = asyncio.run(
            Workers(self._rpc).install(self.heads, library.digests, self.rules)
        )

    def _options(self) -> dict[str, Any]:
        library = self.setup.library
        layer = feature_layer(self.probe.layers)
        return {
            **BankOptions(
                str(library.root), tuple(library.digests.items()), layer, gated=True
            ).engine_args(SLOTS),
            "enable_prefix_caching": True,
        }

    async def _rpc(self, method: str, timeout: float, args: Sequence[Any]) -> list[Any]:
        found: list[Any] = self.llm.collective_rpc(method, timeout, tuple(args))
        return found

    def new_conversations(self, count: int) -> list[LoRARequest]:
        """Return adapters of conversations whose mix is not decided yet."""
        return [self.new_turn() for _ in range(count)]

    def new_turn(self, before: wire.TurnBefore | None = None) -> LoRARequest:
        """Return the adapter of a turn whose mix is not decided yet."""
        return wire.make_undecided_request(self._installed, before=before)

    def gated_request(self) -> LoRARequest | None:
        """Return all experts, of which every token takes the two best in each layer (SpectR)."""
        everybody = Mix.of(dict.fromkeys(self.setup.library.names, 1.0))
        return wire.make_mix_request(
            everybody, self.setup.library.digests, Gating("spectr", 2, None)
        )

    def generate_routed(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[LoRARequest | None],
        tokens: int,
        turns: Sequence[tuple[int, int]] | None = None,
        *,
        ignore_eos: bool = True,
    ) -> list[Any]:
        """Return vLLM's outputs: greedy answers of `tokens` tokens.

        Args:
            prompts: Token ids.
            adapters: One for each prompt.
            tokens: Of each answer.
            turns: The tokens [start, end) of each user's turn, all of a prompt if left out.
            ignore_eos: Whether answers go on where the model would end them.
        """
        params = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=ignore_eos, detokenize=False
        )
        read = turns or [(0, len(prompt)) for prompt in prompts]
        told = [
            adapter and wire.with_turn(adapter, turn)
            for adapter, turn in zip(adapters, read, strict=True)
        ]
        return list(
            self.llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                params,
                lora_request=told,
                use_tqdm=False,
            )
        )

    def decide(
        self, prompts: Sequence[Sequence[int]], turns: Sequence[tuple[int, int]] | None = None
    ) -> list[Mix]:
        """Return the mixes that the pass decides."""
        outputs = self.generate_routed(prompts, self.new_conversations(len(prompts)), 1, turns)
        return [self.read_mix(wire.take_decision(output)) for output in outputs]

    def read_mix(self, decision: wire.InlineDecision | None) -> Mix:
        """Return the mix of a decision, which must have come."""
        assert decision is not None, "the turn was not read"
        names = self.heads[decision.head].names
        return self.rules.mix(
            {
                name: units * self.rules.grid
                for name, units in zip(names, decision.units, strict=True)
            }
        )


def compare_decisions(side: Inlined, phrasings: Path, every: int) -> dict[str, Any]:
    """Compare the mixes of hand-written prompts with those that plain transformers decides.

    Args:
        side: The engine; prompts come to it in the chat template.
        phrasings: A file of labelled prompts.
        every: Take one in so many of them.

    Returns:
        The share of equal mixes, and of how many.
    """
    tokenizer = side.llm.get_tokenizer()
    texts = [text for text, _ in read_labelled(phrasings, side.setup.library.names)][::every]
    prompts, turns = [], []
    for text in texts:
        prompts.append(encode_turn(tokenizer, text))
        turn = find_turn(prompts[-1], tokenizer.encode(text, add_special_tokens=False))
        assert turn is not None
        turns.append(turn)
    wanted = [asyncio.run(side.policy.route(Prompt(text), side.probe)).mix for text in texts]
    equal = [mix == other for mix, other in zip(side.decide(prompts, turns), wanted, strict=True)]
    return {"decisions_equal_reference": sum(equal) / len(equal), "decisions": len(equal)}
