"""The mixture's engine with a policy that decides inside the pass, and the same policy in plain transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from adapters.checkpoint import Checkpoint
from adapters.gating import Gating
from adapters.mix import Mix, MixRules
from loadtest.sides import SLOTS, Mixture, Setup
from router.gate import GatePolicy
from router.policy import Activations, Context, Outputs, Prompt, Window
from router.probing import feature_layer
from router.turns import span, tokens
from tta_serve.early import EarlyFeatures, depth
from tta_serve.engine import wire
from tta_serve.engine.options import BankOptions
from tta_serve.engine.workers import Workers
from tta_serve.offline import Offline
from tta_serve.prompts import read_labelled


class Transformers:
    """`router.policy.Probe` in plain transformers, features alone."""

    def __init__(self, base: Path) -> None:
        offline = Offline.load(Checkpoint.open(base))
        self.layers = depth(offline.model)
        self._features = EarlyFeatures(offline, feature_layer(self.layers))

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        return self._features([text], chat=chat)[0]

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        raise NotImplementedError

    async def activations(self, text: str) -> Activations:
        raise NotImplementedError


class Inlined(Mixture):
    """With the demo's gate, and the prefix cache on."""

    name = "inline"
    slots = SLOTS

    def __init__(self, setup: Setup) -> None:
        self.probe = Transformers(setup.base)
        super().__init__(setup)
        library = setup.library
        self.rules = MixRules(frozenset(library.names), self.probe.layers)
        context = Context(self.rules, {}, [], self.probe, library.digests, artifacts=library.root / "router", inline=True)
        self.policy = asyncio.run(GatePolicy.create(GatePolicy.Options(), context))
        self.heads = self.policy.heads()
        self._installed = asyncio.run(Workers(self._rpc).install(self.heads, library.digests, self.rules))

    def _options(self) -> dict[str, Any]:
        library = self.setup.library
        layer = feature_layer(self.probe.layers)
        return {
            **BankOptions(str(library.root), tuple(library.digests.items()), layer, gated=True).engine_args(SLOTS),
            "enable_prefix_caching": True,
        }

    async def _rpc(self, method: str, timeout: float, args: Sequence[Any]) -> list[Any]:
        found: list[Any] = self.llm.collective_rpc(method, timeout, tuple(args))
        return found

    def undecided(self, count: int) -> list[LoRARequest]:
        """New conversations."""
        return [wire.undecided_request(self._installed) for _ in range(count)]

    def gated(self) -> LoRARequest | None:
        """All experts, of which every token takes the two best in each layer (SpectR)."""
        everybody = Mix.of(dict.fromkeys(self.setup.library.names, 1.0))
        return wire.mix_request(everybody, self.setup.library.digests, Gating("spectr", 2, None))

    def routed(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[LoRARequest | None],
        tokens: int,
        turns: Sequence[tuple[int, int]] | None = None,
    ) -> list[Any]:
        """Greedy answers of so many tokens. turns: of the users, the whole prompts if left out"""
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        read = turns or [(0, len(prompt)) for prompt in prompts]
        told = [adapter and wire.with_turn(adapter, turn) for adapter, turn in zip(adapters, read, strict=True)]
        return list(
            self.llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, lora_request=told, use_tqdm=False
            )
        )

    def decided(self, prompts: Sequence[Sequence[int]], turns: Sequence[tuple[int, int]] | None = None) -> list[Mix]:
        """The mixes that the pass decides."""
        outputs = self.routed(prompts, self.undecided(len(prompts)), 1, turns)
        return [self._mix(wire.said_of(output)) for output in outputs]

    def _mix(self, said: wire.Said | None) -> Mix:
        assert said is not None, "the turn was not read"
        names = self.heads[said["head"]].names
        return self.rules.mix({name: units * self.rules.grid for name, units in zip(names, said["units"], strict=True)})


def decisions(side: Inlined, phrasings: Path, every: int) -> dict[str, Any]:
    """The share of hand-written prompts, in the chat template, whose mix is the one that plain transformers decides."""
    tokenizer = side.llm.get_tokenizer()
    texts = [text for text, _ in read_labelled(phrasings, side.setup.library.names)][::every]
    prompts, turns = [], []
    for text in texts:
        prompts.append(tokens(tokenizer, text))
        turn = span(prompts[-1], tokenizer.encode(text, add_special_tokens=False))
        assert turn is not None
        turns.append(turn)
    wanted = [asyncio.run(side.policy.route(Prompt(text), side.probe)).mix for text in texts]
    equal = [mix == other for mix, other in zip(side.decided(prompts, turns), wanted, strict=True)]
    return {"decisions_equal_reference": sum(equal) / len(equal), "decisions": len(equal)}
