"""`python -m loadtest pages`: a model's products with its weights in small and in huge pages.

A processor looks up where a page is for every page that it reads; of weights in pages of 4 kB it
knows few at a time, of weights in pages of 2 MB all. The products are those of the demo's base,
once with all weights in pages of either size, in one process, in turn.
"""

import json
import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear

from loadtest.common import machine
from loadtest.common.console import progress
from loadtest.common.measure import spread

TOKENS = (1, 4, 16, 64, 512)
_HIDDEN, _WIDE, _KEYS, _WORDS, _LAYERS = 576, 1536, 192, 49152, 30
_LAYER = (
    (_HIDDEN, _HIDDEN),
    (_KEYS, _HIDDEN),
    (_KEYS, _HIDDEN),
    (_HIDDEN, _HIDDEN),
    (_WIDE, _HIDDEN),
    (_WIDE, _HIDDEN),
    (_HIDDEN, _WIDE),
)
SHAPES = (*_LAYER * _LAYERS, (_WORDS, _HIDDEN))
"""Of the weights, [out, in], in the order in which they are used."""
_HUGE = 2 << 20


def command(
    repeats: Annotated[int, typer.Option(min=3, help="Of each pair of passes.")] = 30,
) -> None:
    """Compare products whose weights lie in pages of 4 kB with the same in pages of 2 MB."""
    machine.set_environment()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    weights = {huge: [allocate(shape, huge=huge) for shape in SHAPES] for huge in (False, True)}
    if not (given := count_huge_bytes()):
        progress.print("this Linux gives no huge pages: see /sys/kernel/mm/transparent_hugepage")
        raise typer.Exit(2)

    table = Table("tokens", "small pages, ms", "huge pages, ms", "times as fast")
    rows = []
    for tokens in TOKENS:
        times = [time_both(weights, tokens, r) for r in range(repeats)]
        ratios = [small / huge for small, huge in times]
        small, huge = (1e3 * median(one) for one in zip(*times, strict=True))
        rows.append({"tokens": tokens, "ratio": median(ratios), "ratio_spread": spread(ratios)})
        table.add_row(str(tokens), f"{small:.1f}", f"{huge:.1f}", f"{median(ratios):.3f}")
    Console().print(table)
    result = {**machine.describe_machine(), "huge_gb": given / 1e9, "rows": rows}
    print(json.dumps(machine.round_floats(result)), flush=True)


def allocate(shape: tuple[int, int], *, huge: bool) -> Tensor:
    """Return random numbers, in huge pages as far as Linux gives them."""
    count = shape[0] * shape[1]
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, 4 * count + (_HUGE if huge else 0), flags=private)
    if huge:
        memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the memory.
    return torch.frombuffer(memory, dtype=torch.float32, count=count).view(shape).normal_()


def count_huge_bytes() -> int:
    """Return how much of this process's memory is in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("AnonHugePages:")]
    return int(line.split()[1]) << 10


def time_both(
    weights: Mapping[bool, list[Tensor]], tokens: int, number: int
) -> tuple[float, float]:
    """Return the seconds of a pass with small pages, and of one with huge ones.

    Args:
        weights: By whether their pages are huge.
        tokens: Of the pass.
        number: Of the pair; every other one begins with huge pages.
    """
    states = {width: torch.randn(tokens, width) for width in (_HIDDEN, _WIDE)}
    taken = {}
    for huge in (bool(number % 2), not number % 2):
        began = time.perf_counter()
        for weight in weights[huge]:
            linear(states[weight.shape[1]], weight)
        taken[huge] = time.perf_counter() - began
    return taken[False], taken[True]
