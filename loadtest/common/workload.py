"""What is asked: shapes, prompts and mixes, all from seeds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from adapters.mix import Mix

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
EXPERTS = ROOT / "deploy" / "demo" / "experts"
GRID = 0.05
EXPERTS_PER_MIX = 3
# SmolLM2's vocabulary without the special tokens at its start.
_TOKENS = range(20, 49_152)


@dataclass(frozen=True)
class Shape:
    """How long prompts and answers are."""

    name: str
    prompt: int
    """Tokens of each prompt."""
    answer: int
    """Tokens of each answer."""
    counts_prompt: bool
    """Whether tokens/s count the prompt too, as they should where reading it is the work."""

    @property
    def counted(self) -> int:
        """The tokens of a request that count for tokens/s."""
        return self.answer + (self.prompt if self.counts_prompt else 0)


SHAPES = {
    "decode": Shape("decode", prompt=16, answer=64, counts_prompt=False),
    "prefill": Shape("prefill", prompt=512, answer=8, counts_prompt=True),
}


@dataclass(frozen=True)
class RequestBatch:
    """Requests that are sent at once."""

    shape: Shape
    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    mixes: tuple[Mix, ...]
    """One per prompt."""

    def first(self, count: int) -> "RequestBatch":
        """Return the batch of the first `count` requests."""
        return replace(self, prompts=self.prompts[:count], mixes=self.mixes[:count])


def make_batch(shape: Shape, mixes: Sequence[Mix], *seed: object) -> RequestBatch:
    """Make one request for each mix, each with a prompt of its own."""
    rng = random.Random(f"prompts/{shape.name}/{seed}")
    prompts = tuple(tuple(rng.choices(_TOKENS, k=shape.prompt)) for _ in mixes)
    return RequestBatch(shape, prompts, tuple(mixes))


def draw_mixes(names: Sequence[str], count: int, *seed: object) -> list[Mix]:
    """Draw different mixes, each of 3 random experts with coefficients 0.05, 0.10 .. 1.

    Where there are fewer experts a mix has all of them.
    """
    rng = random.Random(f"mixes/{seed}")
    width = min(EXPERTS_PER_MIX, len(names))
    mixes: dict[Mix, None] = {}
    while len(mixes) < count:
        mixes[_mix(rng, rng.sample(list(names), width))] = None
    return list(mixes)


def draw_covering_mixes(names: Sequence[str], count: int, *seed: object) -> list[Mix]:
    """Draw different mixes that together use as many experts as they can.

    They take 3 each, in turn.
    """
    rng = random.Random(f"covering/{seed}")
    width = min(EXPERTS_PER_MIX, len(names))
    mixes: dict[Mix, None] = {}
    while len(mixes) < count:
        start = len(mixes) * width
        mixes[_mix(rng, [names[(start + i) % len(names)] for i in range(width)])] = None
    return list(mixes)


def draw_zipf(things: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """Draw things by Zipf's law: the k-th of them has a share of 1 / k."""
    return rng.choices(things, weights=[1 / k for k in range(1, len(things) + 1)], k=count)


def numbers_of(mix: Mix) -> dict[str, float]:
    """Return the coefficients of a mix that has one number for each expert.

    All mixes that are made here have.
    """
    return {name: c for name, c in mix.coefficients if isinstance(c, float)}


def _mix(rng: random.Random, names: Sequence[str]) -> Mix:
    return Mix.of({name: round(rng.randint(1, round(1 / GRID)) * GRID, 2) for name in names})
