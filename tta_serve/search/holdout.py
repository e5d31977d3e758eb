"""What a search has found, beside what it must beat, on questions that it never saw."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from router.probing import gather_all
from tta_serve.evaluation.arms import MixRequest
from tta_serve.evaluation.intervals import (
    BootstrapEstimate,
    estimate_difference,
    estimate_mean,
)

FOUND = "found"
"""The arm of what the search has found."""


@dataclass(frozen=True)
class HeldOutRow:
    """How one arm scored."""

    arm: str
    """Its name."""
    score: BootstrapEstimate
    """Its mean score."""
    found_over: BootstrapEstimate | None
    """What was found, less this arm, on the same questions; None for what was found itself."""


async def compare_arms(
    arms: Mapping[str, MixRequest],
    questions: int,
    ask: Callable[[int, MixRequest], Awaitable[float]],
    at_once: int,
    seed: int,
) -> list[HeldOutRow]:
    """Ask all arms all questions; equal requests are asked once.

    Args:
        arms: How each arm is asked, `FOUND` among them.
        questions: How many questions there are.
        ask: Returns what an arm's answer to one of them is worth.
        at_once: How many are under way at a time.
        seed: Of the intervals.

    Returns:
        The rows, best first.
    """
    different = dict.fromkeys(arms.values())
    pairs = [(asked, number) for asked in different for number in range(questions)]

    async def one(pair: tuple[MixRequest, int]) -> float:
        return await ask(pair[1], pair[0])

    found = dict(zip(pairs, await gather_all(one, pairs, at_once), strict=True))
    values = {
        name: [found[asked, number] for number in range(questions)] for name, asked in arms.items()
    }
    rows = [_make_row(name, own, values[FOUND], seed) for name, own in values.items()]
    return sorted(rows, key=lambda row: (-row.score.value, row.arm != FOUND))


def _make_row(name: str, values: Sequence[float], found: Sequence[float], seed: int) -> HeldOutRow:
    gap = None if name == FOUND else estimate_difference([(found, values)], seed)
    return HeldOutRow(name, estimate_mean(values, seed), gap)


def to_plain(estimate: BootstrapEstimate | None) -> list[float | None] | None:
    """Return value and bounds as JSON can hold them."""
    if estimate is None:
        return None
    return [None if math.isnan(value) else round(value, 4) for value in estimate]
