"""An engine made by hand: known numbers, and a count of what it was asked."""

import asyncio
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.probing import Activations, Outputs, Window
from router.scoring.heads import Head

NAN = float("nan")


class CountingEngine:
    """Attributes:
    gate: Passes end only while it is set.
    failures: How many of the next passes fail.
    ended: How many ended.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.ended = 0
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()
        ones = torch.ones(3, 2)
        self.found = Activations(
            ("d1", "d2", "d3"), ("s1", "s2"), ones, ones, ones, ones, torch.ones(2)
        )

    async def _ask(self, *what: object) -> None:
        self.asked.append(what)
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no pass")
        self.ended += 1

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        await self._ask("features", text)
        return torch.full((2,), float(len(text)))

    async def compare(
        self,
        prompt: Prompt,
        candidates: Sequence[Mix],
        window: Window,
        digests: Mapping[str, str],
        dense: Collection[str] = (),
    ) -> Outputs:
        await self._ask("compare", prompt.user_turn)
        rows = torch.zeros(1 + len(candidates))
        return Outputs(rows[1:], rows, rows, window.last)

    async def install(
        self, heads: Sequence[Head], digests: Mapping[str, str], rules: MixRules
    ) -> str:
        await self._ask("install", *(head.names for head in heads))
        return "policy"

    async def activations(self, text: str) -> Activations:
        await self._ask("activations", text)
        return self.found
