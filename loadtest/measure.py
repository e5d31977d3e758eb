"""Interleaved repeats, medians and ratios."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# A worker of vLLM polls for a second after its last step before it sleeps; until then it would slow down the next side.
SETTLE_S = 1.2


@dataclass(frozen=True)
class Repeats:
    """count: rounds   budget_s: a side that has taken this long in one comparison sits out its later rounds; None: no limit"""

    count: int
    budget_s: float | None = None


Series = dict[str, list[float]]


def interleaved(sides: Mapping[str, Callable[[int], float]], repeats: Repeats) -> Series:
    """Call every side once a round, starting one side later in each round. Returns each side's values, by round."""
    names = list(sides)
    values: Series = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for r in range(repeats.count):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            if repeats.budget_s is None or spent[name] < repeats.budget_s:
                time.sleep(SETTLE_S)
                began = time.perf_counter()
                values[name].append(sides[name](r))
                spent[name] += time.perf_counter() - began
    return values


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round, so that what slows down a whole round cancels."""
    return median(a / b for a, b in zip(above, below, strict=False))


def spread(values: Sequence[float]) -> list[float]:
    """Least and greatest."""
    return [min(values), max(values)]
