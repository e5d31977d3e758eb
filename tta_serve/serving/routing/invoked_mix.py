"""Mixes of experts some of which act only from their invocation on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm.lora.request import LoRARequest

from adapters.mix import Mix
from router.scoring.chat_turns import find_last


class InvokedPart(NamedTuple):
    """Tokens of a prompt, from one to the start of the next part, that run as one mix."""

    start: int
    adapter: LoRARequest | None
    """The mix as the engine takes it, None for the base."""


@dataclass(frozen=True)
class InvokedMix:
    """A mix that holds an expert only from the last place of its invocation in the prompt on.

    An expert whose invocation is not in the prompt does not act at all. Activated LoRA (Greenewald
    et al. 2025, arXiv 2504.12397), as PEFT finds its place.
    """

    mix: Mix
    invocations: Mapping[str, Sequence[int]]
    """The tokens of the experts that have any, by name."""
    make: Callable[[Mix], LoRARequest | None]
    """Makes the engine's request of a mix."""

    def find_starts(self, tokens: Sequence[int]) -> dict[str, int | None]:
        """Return the token from which each such expert acts in a prompt, None if it does not."""
        return {name: find_last(tokens, wanted) for name, wanted in self.invocations.items()}

    def split(self, starts: Mapping[str, int | None], begins: int) -> list[InvokedPart]:
        """Return what a prompt runs as.

        Args:
            starts: As `find_starts` returned them.
            begins: The token from which the mix as a whole acts.
        """
        cuts = {begins, *(max(begins, start) for start in starts.values() if start is not None)}
        return [InvokedPart(cut, self.make(self._cut(starts, cut))) for cut in sorted(cuts)]

    def _cut(self, starts: Mapping[str, int | None], token: int) -> Mix:
        """Return the mix of the experts that act on a token."""
        coefficients = self.mix.as_dict()
        for name, start in starts.items():
            if start is None or start > token:
                del coefficients[name]
        return Mix.of(coefficients)
