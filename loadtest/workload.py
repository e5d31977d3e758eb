"""What is asked: shapes, prompts and mixes, all from seeds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.mix import Mix

EXPERTS = Path(__file__).resolve().parent.parent / "deploy" / "demo" / "experts"
GRID = 0.05
EXPERTS_PER_MIX = 3
# SmolLM2's vocabulary without the special tokens at its start.
_TOKENS = range(20, 49_152)


@dataclass(frozen=True)
class Shape:
    """Tokens of each prompt and of each answer.

    What counts for tokens/s: the answer's tokens where decoding is the work, prompt and answer where reading is.
    """

    name: str
    prompt: int
    answer: int
    counts_prompt: bool

    @property
    def counted(self) -> int:
        """Tokens that count, per request."""
        return self.answer + (self.prompt if self.counts_prompt else 0)


SHAPES = {
    "decode": Shape("decode", prompt=16, answer=64, counts_prompt=False),
    "prefill": Shape("prefill", prompt=512, answer=8, counts_prompt=True),
}


@dataclass(frozen=True)
class Batch:
    """Requests that are sent at once. prompts: token ids   mixes: one per prompt"""

    shape: Shape
    prompts: tuple[tuple[int, ...], ...]
    mixes: tuple[Mix, ...]

    def first(self, count: int) -> "Batch":
        return replace(self, prompts=self.prompts[:count], mixes=self.mixes[:count])


def batch(shape: Shape, mixes: Sequence[Mix], *seed: object) -> Batch:
    """One request per mix, each with a prompt of its own."""
    rng = random.Random(f"prompts/{shape.name}/{seed}")
    prompts = tuple(tuple(rng.choices(_TOKENS, k=shape.prompt)) for _ in mixes)
    return Batch(shape, prompts, tuple(mixes))


def random_mixes(names: Sequence[str], count: int, *seed: object) -> list[Mix]:
    """Different mixes, each of 3 random experts (all of them where there are fewer), coefficients 0.05, 0.10 .. 1."""
    rng = random.Random(f"mixes/{seed}")
    width = min(EXPERTS_PER_MIX, len(names))
    mixes: dict[Mix, None] = {}
    while len(mixes) < count:
        mixes[_mix(rng, rng.sample(list(names), width))] = None
    return list(mixes)


def covering_mixes(names: Sequence[str], count: int, *seed: object) -> list[Mix]:
    """Different mixes that take 3 experts each in turn, so that together they use as many experts as they can."""
    rng = random.Random(f"covering/{seed}")
    width = min(EXPERTS_PER_MIX, len(names))
    mixes: dict[Mix, None] = {}
    while len(mixes) < count:
        start = len(mixes) * width
        mixes[_mix(rng, [names[(start + i) % len(names)] for i in range(width)])] = None
    return list(mixes)


def numbers_of(mix: Mix) -> dict[str, float]:
    """The coefficients of a mix that has one number for each expert, as all have that are made here."""
    return {name: c for name, c in mix.coefficients if isinstance(c, float)}


def _mix(rng: random.Random, names: Sequence[str]) -> Mix:
    return Mix.of({name: round(rng.randint(1, round(1 / GRID)) * GRID, 2) for name in names})
