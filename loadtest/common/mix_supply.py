"""The mixes that requests name, and which request names which."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapters.mix import Mix
from loadtest.common.workload import draw_mixes, draw_zipf


class MixChoice(StrEnum):
    """Which mixes are named, and how often each."""

    UNIFORM = "uniform"
    """Random ones, each as often as any other."""
    ZIPF = "zipf"
    """The same ones, the k-th of them with a share of 1 / k."""
    ONE_HOT = "one-hot"
    """One expert alone in each, each as often as any other; no more than there are experts."""


@dataclass(frozen=True)
class MixSupply:
    """Different mixes, in the order of their numbers."""

    mixes: Sequence[Mix]
    choice: MixChoice = MixChoice.UNIFORM
    seed: int = 0

    @classmethod
    def of(cls, choice: MixChoice, names: Sequence[str], count: int, seed: int) -> "MixSupply":
        """Make the mixes of a choice.

        Args:
            choice: Which mixes.
            names: The experts that there are.
            count: How many mixes, if so many are possible.
            seed: Of what is drawn.
        """
        if choice is MixChoice.ONE_HOT:
            return cls([Mix.of({name: 1.0}) for name in names[:count]], choice, seed)
        return cls(draw_mixes(names, count, seed), choice, seed)

    @property
    def width(self) -> int:
        """The most experts that one of them has."""
        return max(len(mix.coefficients) for mix in self.mixes)

    def number_requests(self, requests: int, different: int) -> list[int]:
        """Return for each request the number of its mix; fewer requests have the first of them.

        Args:
            requests: How many requests.
            different: The most mixes that they name.
        """
        numbers = range(min(different, len(self.mixes)))
        if self.choice is MixChoice.ZIPF:
            return draw_zipf(numbers, requests, random.Random(f"zipf/{self.seed}"))
        return [numbers[i % len(numbers)] for i in range(requests)]
