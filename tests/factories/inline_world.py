"""Random heads, requests that they decide, and the slow maths of both."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from adapters.coefficient import Coefficient
from adapters.library.library import Library
from adapters.mix import Mix, MixRules
from router.scoring.blend import blend
from router.scoring.heads import Head
from router.scoring.shares import keep_best, softmax
from tests.factories.engines import Answer, Engine, assert_same, read_answer, workers_of
from tests.factories.tiny_engines import tiny_engine
from tests.reference import Reference, number_at
from tta_serve.engine import wire

BLOCK = 32  # tokens of a block of the prefix cache
LAYER = 1  # of two: what is decided there is used there, and not below


class Asked(NamedTuple):
    """A request for the engine."""

    prompt: list[int]
    """The ids of the prompt's tokens."""
    adapter: LoRARequest | None = None
    """What it runs as, None for the base."""
    turn: tuple[int, int] | None = None
    """The tokens [start, end) of the prompt that are the user's turn."""


class Got(NamedTuple):
    """What the engine gave."""

    answer: Answer
    report: wire.PassReport | None
    """What the pass said of the request."""

    @property
    def decided(self) -> wire.InlineDecision:
        """The decision that it said; it must have said one."""
        assert isinstance(self.report, wire.InlineDecision)
        return self.report


@dataclass(frozen=True)
class World:
    """A tiny base, its experts, a random head, and what plain transformers makes of them."""

    library: Library
    reference: Reference
    base: Path
    head: Head
    module: str = f"model.layers.{LAYER}.self_attn.q_proj"

    @classmethod
    def of(cls, base: Path, library: Library, *, top: int = 2) -> "World":
        """Return a world whose head tells random prompts apart: its weights are large."""
        reference = Reference(base)
        names, width = tuple(sorted(library.names)), reference.model.config.hidden_size
        random = torch.Generator().manual_seed(3)
        weight = torch.randn(len(names) + 1, width, generator=random) / 2
        mean = torch.randn(width, generator=random) * 0.1
        head = Head(
            names,
            mean,
            torch.rand(width, generator=random) + 0.5,
            weight,
            torch.zeros(len(names) + 1),
            top=top,
            several=torch.randn(width + 1, generator=random),
        )
        return cls(library, reference, base, head)

    def engine(self, slots: int = 8, **settings: Any) -> AbstractContextManager[Engine]:
        """Start an engine with the world's experts in the test's own process.

        Args:
            slots: How many mixes a step can have.
            settings: As `tests.factories.engines.Engine` takes them, over ours.
        """
        fixed = dict.fromkeys(("max_loras", "max_cpu_loras", "max_num_seqs"), slots)
        return tiny_engine(self.base, self.library, **fixed | {"block_size": BLOCK} | settings)

    @property
    def rules(self) -> MixRules:
        """The rules by which the head's scores become mixes."""
        return MixRules(
            frozenset(self.library.names), self.reference.model.config.num_hidden_layers
        )

    def install(self, engine: Engine) -> str:
        """Install the head as a policy. Returns its name on the wire."""
        return asyncio.run(
            workers_of(engine.llm).install([self.head], self.library.digests, self.rules)
        )

    def features(self, prompt: list[int], turn: tuple[int, int]) -> torch.Tensor:
        """Return the mean over a turn of what the tapped layer reads."""
        return self.reference.inputs(self.module, prompt)[turn[0] : turn[1]].mean(0)

    def decision(
        self, prompt: list[int], turn: tuple[int, int]
    ) -> tuple[dict[str, float], float, Mix]:
        """Return scores, floor and mix, computed number by number."""
        z = self._standardise(prompt, turn)
        *scores, floor = (self.head.weight @ z).tolist()
        by_name = dict(zip(self.head.names, scores, strict=True))
        shares = keep_best(softmax(by_name), self.head.top)
        return by_name, floor, blend(shares, self.rules) if max(scores) >= floor else Mix()

    def several(self, prompt: list[int], turn: tuple[int, int]) -> float:
        """Return the logit that the request wants several experts."""
        assert self.head.several is not None
        *weights, bias = self.head.several
        return float(torch.stack(weights) @ self._standardise(prompt, turn) + bias)

    def _standardise(self, prompt: list[int], turn: tuple[int, int]) -> torch.Tensor:
        return (self.features(prompt, turn) - self.head.mean) / self.head.std

    def upper(self, mix: Mix) -> Mix:
        """Return the mix in the layers that use what is decided, and the base below."""
        layers = self.rules.layers
        return Mix.of({name: _above(value, layers) for name, value in mix.coefficients})

    def mix(self, decision: wire.InlineDecision) -> Mix:
        """Return the mix that a decision stands for."""
        units = zip(self.head.names, decision.units, strict=True)
        return self.rules.mix({name: number * self.rules.grid for name, number in units})

    def assert_decided(self, asked: Asked, got: Got) -> None:
        """The pass decided as the slow maths does, and the answer is that of the mix.

        The mix is used in the upper layers, above the base's lower ones.
        """
        assert asked.turn is not None
        scores, floor, mix = self.decision(asked.prompt, asked.turn)
        torch.testing.assert_close(
            torch.tensor([*got.decided.scores, got.decided.floor, got.decided.several]),
            torch.tensor([*scores.values(), floor, self.several(asked.prompt, asked.turn)]),
            rtol=1e-3,
            atol=1e-3,
        )
        assert self.mix(got.decided) == mix
        self.assert_answer(got.answer, mix, got.decided.since)

    def assert_answer(self, answer: Answer, mix: Mix, since: int) -> None:
        """The answer is that of tokens that from `since` on use the mix in upper layers.

        All others run as the base.
        """
        used = self.upper(mix).as_dict()

        def coefficients(name: str, module: str, x: torch.Tensor) -> torch.Tensor:
            later = torch.arange(len(x)) >= since
            return later * number_at(used[name], module)

        experts = {name: self.library.experts[name] for name in used}
        with self.reference.per_token(experts, coefficients):
            assert_same(answer, self.reference.logprobs(answer.prompt, answer.tokens))


def _above(value: Coefficient, layers: int) -> tuple[float, ...]:
    """Return a coefficient for each layer, 0 below the one that decides."""
    assert isinstance(value, float)
    return tuple(value * (layer >= LAYER) for layer in range(layers))


def ask(engine: Any, asked: Sequence[Asked], tokens: int = 8, **settings: Any) -> list[Got]:
    """Return greedy answers to all requests, which run at once."""
    params = SamplingParams(
        max_tokens=tokens,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        **{"temperature": 0} | settings,
    )
    outputs = engine.llm.generate(
        [{"prompt_token_ids": one.prompt} for one in asked],
        params,
        lora_request=[
            wire.with_turn(one.adapter, one.turn) if one.adapter and one.turn else one.adapter
            for one in asked
        ],
        use_tqdm=False,
    )
    return [Got(read_answer(output), wire.take_report(output)) for output in outputs]
