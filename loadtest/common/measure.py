"""Interleaved repeats, medians and ratios."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# A worker of vLLM polls for a second after its last step before it sleeps; until then it would slow
# down the next side.
SETTLE_S = 1.2


@dataclass(frozen=True)
class Repeats:
    """How often a comparison is repeated."""

    count: int
    """Rounds."""
    budget_s: float | None = None
    """Seconds after which a side sits out the later rounds of a comparison, None for no limit."""


Series = dict[str, list[float]]


def interleave(sides: Mapping[str, Callable[[int], float]], repeats: Repeats) -> Series:
    """Call every side once a round, starting one side later in each round.

    Returns:
        The values of each side, by round.
    """
    names = list(sides)
    values: Series = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for r in range(repeats.count):
        for name in rotate(names, r):
            if repeats.budget_s is None or spent[name] < repeats.budget_s:
                time.sleep(SETTLE_S)
                began = time.perf_counter()
                values[name].append(sides[name](r))
                spent[name] += time.perf_counter() - began
    return values


def rotate(names: Sequence[str], by: int) -> list[str]:
    """Return the names in their order, from another one on."""
    shift = by % len(names)
    return [*names[shift:], *names[:shift]]


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of the ratio within a round.

    What slows down a whole round cancels.
    """
    return median(a / b for a, b in zip(above, below, strict=False))


def spread(values: Sequence[float]) -> list[float]:
    """Return the least and the greatest."""
    return [min(values), max(values)]
