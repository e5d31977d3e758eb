"""What a switch of the weights takes, over what the memory allows."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from deploy.demo.base import ensure_base
from loadtest.sides.dense_engine import DenseEngine, write_library
from loadtest.sides.engines import Setup


def measure_switch(quick: bool) -> dict[str, Any]:
    """Return medians over switches between mixes of one and two dense experts.

    The floor of a switch is what it takes to copy as many bytes as the switch must read and write:
    the clean weights, the deltas, and the weights.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        base = ensure_base()
        library = write_library(Path(folder) / "library", base, 2 if quick else 4)
        digests = sorted(d for n, d in library.digests.items() if library.form(n) == "dense")
        side = DenseEngine(Setup(base, library, Path(folder)))
        try:
            found = {
                experts: side.call("bench_switches", _make_mixes(digests, experts), count)
                for experts, count in ((1, 9 if quick else 21), (2, 9 if quick else 21))
            }
        finally:
            side.close()
    ratios = {n: _find_ratio(row) for n, row in found.items()}
    return {
        "switch_over_floor": max(ratios.values()),
        "switch_over_floor_by_experts": ratios,
        "switch_s": {n: median(row["seconds"][1:]) for n, row in found.items()},
        "switch_gb": {n: row["bytes"] / 1e9 for n, row in found.items()},
        "base_bit_identical": all(row["base_bit_identical"] for row in found.values()),
    }


def _make_mixes(digests: list[str], experts: int) -> list[list[tuple[str, float]]]:
    return [[(digest, c) for digest in digests[:experts]] for c in (1.0, 0.5)]


def _find_ratio(row: dict[str, Any]) -> float:
    """Return the median of a switch over its floor; the first brings memory into being."""
    return float(median(s / f for s, f in zip(row["seconds"][1:], row["floors"][1:], strict=True)))
