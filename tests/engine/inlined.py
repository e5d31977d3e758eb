"""Random heads, requests that they decide, and the slow maths of both."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from adapters.library import Library
from adapters.mix import Mix, MixRules
from router.blend import blend
from router.inline import Head
from router.shares import best, softmax
from tests.engine.conftest import Answer, Engine, _answer, assert_same, workers_of
from tests.reference import Reference
from tta_serve.engine import wire

LAYER = 1  # of two: what is decided there is used there, and not below


class Asked(NamedTuple):
    """A request for the engine. turn: the user's, in the prompt"""

    prompt: list[int]
    adapter: LoRARequest | None = None
    turn: tuple[int, int] | None = None


class Got(NamedTuple):
    answer: Answer
    said: wire.Said | None


@dataclass(frozen=True)
class World:
    """A tiny base, its experts, a random head over them, and what plain transformers makes of all."""

    library: Library
    reference: Reference
    base: Path
    head: Head
    module: str = f"model.layers.{LAYER}.self_attn.q_proj"

    @classmethod
    def of(cls, base: Path, library: Library, *, top: int = 2) -> "World":
        """The head tells random prompts apart: its weights are large."""
        reference = Reference(base)
        names, width = tuple(sorted(library.names)), reference.model.config.hidden_size
        random = torch.Generator().manual_seed(3)
        weight = torch.randn(len(names) + 1, width, generator=random) / 2
        mean = torch.randn(width, generator=random) * 0.1
        head = Head(names, mean, torch.rand(width, generator=random) + 0.5, weight, torch.zeros(len(names) + 1), top=top)
        return cls(library, reference, base, head)

    @property
    def rules(self) -> MixRules:
        return MixRules(frozenset(self.library.names), self.reference.model.config.num_hidden_layers)

    def install(self, engine: Engine) -> str:
        return asyncio.run(workers_of(engine.llm).install([self.head], self.library.digests, self.rules))

    def features(self, prompt: list[int], turn: tuple[int, int]) -> torch.Tensor:
        return self.reference.inputs(self.module, prompt)[turn[0] : turn[1]].mean(0)

    def decision(self, prompt: list[int], turn: tuple[int, int]) -> tuple[dict[str, float], float, Mix]:
        """Scores, floor and mix, number by number."""
        z = (self.features(prompt, turn) - self.head.mean) / self.head.std
        *scores, floor = (self.head.weight @ z).tolist()
        by_name = dict(zip(self.head.names, scores, strict=True))
        shares = best(softmax(by_name), self.head.top)
        return by_name, floor, blend(shares, self.rules) if max(scores) >= floor else Mix()

    def upper(self, mix: Mix) -> Mix:
        """The mix in the layers that use what is decided."""
        layers = self.rules.layers
        return Mix.of({n: tuple(c * (layer >= LAYER) for layer in range(layers)) for n, c in mix.coefficients})  # type: ignore[operator]

    def mix(self, said: wire.Said) -> Mix:
        return self.rules.mix({n: u * self.rules.grid for n, u in zip(self.head.names, said["units"], strict=True)})

    def assert_decided(self, asked: Asked, got: Got) -> None:
        """What was said is what the slow maths decides, and the answer is that of the mix above the base's lower layers."""
        assert asked.turn is not None
        assert got.said is not None
        scores, floor, mix = self.decision(asked.prompt, asked.turn)
        torch.testing.assert_close(
            torch.tensor([*got.said["scores"], got.said["floor"]]),
            torch.tensor([*scores.values(), floor]),
            rtol=1e-3,
            atol=1e-3,
        )
        assert self.mix(got.said) == mix
        self.assert_answer(got.answer, mix, got.said["since"])

    def assert_answer(self, answer: Answer, mix: Mix, since: int) -> None:
        """The answer is that of tokens from `since` on which use the mix in upper layers; all others run as the base."""
        used = self.upper(mix).as_dict()

        def coefficients(name: str, module: str, x: torch.Tensor) -> torch.Tensor:
            value = used[name]
            assert isinstance(value, tuple)
            later = torch.arange(len(x)) >= since
            return later * value[int(module.split(".")[2])]

        experts = {name: self.library.experts[name] for name in used}
        with self.reference.per_token(experts, coefficients):
            assert_same(answer, self.reference.logprobs(answer.prompt, answer.tokens))


def ask(engine: Any, asked: Sequence[Asked], tokens: int = 8, **settings: Any) -> list[Got]:
    """Greedy answers to all at once."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False, **{"temperature": 0} | settings)
    outputs = engine.llm.generate(
        [{"prompt_token_ids": one.prompt} for one in asked],
        params,
        lora_request=[wire.with_turn(one.adapter, one.turn) if one.adapter and one.turn else one.adapter for one in asked],
        use_tqdm=False,
    )
    return [Got(_answer(output), wire.said_of(output)) for output in outputs]
