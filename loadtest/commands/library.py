"""`python -m loadtest library`: adding experts and merging them, beside mergekit.

Every measurement is a process of its own; ours and mergekit's take turns. Both start from files and
end with a checkpoint: mergekit reads fine-tunes, ours the dense experts that `tta experts add` made
of them, which the first table measures.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest.common import machine
from loadtest.common.console import progress

METHODS = ("task_arithmetic", "ties", "dare_linear")
FORMS: dict[str, dict[str, Any]] = {
    "dense": {"form": "dense"},
    "one_bit": {"form": "one_bit"},
    "rank 16": {"form": "low_rank", "rank": 16},
}
FEW = 3
TIMEOUT_S = 1800

Row = dict[str, Any]


def command(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Models of 0.1 and 0.5 GB, at most 8 experts, 2 repeats."),
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Of each merge; 3, and 2 with --quick.")
    ] = None,
) -> None:
    """Measure the library offline: ingest, and merges beside mergekit."""
    machine.set_environment()
    sizes, counts = ((0.1, 0.5), (2, 8)) if quick else ((0.1, 0.5, 2.0), (2, 8, 32, 64))
    times = repeats or (2 if quick else 3)
    ingests: list[Row] = []
    merges: list[Row] = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
            bench = Bench(Path(folder), size, FEW)
            ingests += bench.ingest()
            merges += [bench.merge(method, FEW, times) for method in METHODS]
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        bench = Bench(Path(folder), sizes[0], max(counts))
        bench.ingest()
        merges += [bench.merge(method, count, times) for count in counts for method in METHODS]
    _show(ingests, merges)
    largest = [row for row in merges if row["size_gb"] == sizes[-1]]
    result = {
        **machine.describe_machine(),
        "quick": quick,
        "repeats": times,
        "time_over_mergekit": {row["method"]: row["time_over_mergekit"] for row in largest},
        "memory_over_mergekit": {row["method"]: row["memory_over_mergekit"] for row in largest},
        "ingest_peak_over_largest_shard": max(
            r["peak_over_largest_shard"] for r in ingests if r["size_gb"] == sizes[-1]
        ),
        "ingest": ingests,
        "merges": merges,
    }
    print(json.dumps(machine.round_floats(result)), flush=True)


class Bench:
    """Checkpoints of one size, and a library of them."""

    def __init__(self, folder: Path, size_gb: float, count: int) -> None:
        from loadtest.commands.checkpoints import write_checkpoints

        with progress.status(f"{count} fine-tunes of {size_gb} GB ..."):
            self._base, self._tuned = write_checkpoints(folder, size_gb, count)
        self._folder = folder
        self._size_gb = size_gb
        self._shard_bytes = max(file.stat().st_size for file in self._base.glob("*.safetensors"))
        self._jobs = 0

    def ingest(self) -> list[Row]:
        """Add the first fine-tune in every form, measured; then all of them dense, unmeasured."""
        rows = []
        for name, form in FORMS.items():
            took = self._ingest(self._tuned[0], f"first-{name.replace(' ', '-')}", form)
            peak = took["peak_bytes"] / self._shard_bytes
            row = {"size_gb": self._size_gb, "form": name, **took, "peak_over_largest_shard": peak}
            progress.log(machine.round_floats(row))
            rows.append(row)
        for path in self._tuned:
            self._ingest(path, path.name, FORMS["dense"])
        return rows

    def merge(self, method: str, count: int, repeats: int) -> Row:
        """Merge by ours and by mergekit in turn; return medians, and ratios within repeats."""
        tuned = self._tuned[:count]
        job = {
            "method": method,
            "base": str(self._base),
            "tuned": [str(path) for path in tuned],
            "experts": [path.name for path in tuned],
            "weights": [1 / count] * count if method != "ties" else [1.0] * count,
            "library": str(self._folder / "library"),
            "shard_bytes": self._shard_bytes,
            "dtype": "bfloat16",
        }
        found: dict[str, list[Row]] = {"ours": [], "mergekit": []}
        for r in range(repeats):
            for kind in ("ours", "mergekit") if r % 2 == 0 else ("mergekit", "ours"):
                found[kind].append(self._run({**job, "kind": kind}))
        row: Row = {"size_gb": self._size_gb, "experts": count, "method": method}
        for kind, runs in found.items():
            row |= {
                f"{kind}_{key}": median(run[key] for run in runs)
                for key in ("seconds", "peak_bytes")
            }
        for short, key in (("time", "seconds"), ("memory", "peak_bytes")):
            pairs = zip(found["ours"], found["mergekit"], strict=True)
            row[f"{short}_over_mergekit"] = median(a[key] / b[key] for a, b in pairs)
        progress.log(machine.round_floats(row))
        return row

    def _ingest(self, path: Path, name: str, form: Row) -> Row:
        base, library = str(self._base), str(self._folder / "library")
        return self._run(
            {
                "kind": "ingest",
                "base": base,
                "path": str(path),
                "name": name,
                "library": library,
                **form,
            }
        )

    def _run(self, job: Row) -> Row:
        """Run the job in a process of its own; its merged checkpoint is deleted."""
        self._jobs += 1
        out = self._folder / f"out-{self._jobs}"
        file = self._folder / "job.json"
        file.write_text(json.dumps({**job, "out": str(out)}), encoding="utf-8")
        command = [sys.executable, "-m", "loadtest.commands.library_job", str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment
        )
        shutil.rmtree(out, ignore_errors=True)
        if done.returncode:
            raise RuntimeError(
                f"{job['kind']} ended with status {done.returncode}:\n{done.stderr[-2000:]}"
            )
        result: Row = json.loads(done.stdout.splitlines()[-1])
        return result


def _show(ingests: list[Row], merges: list[Row]) -> None:
    console = Console()
    table = Table(
        "model, GB",
        "form",
        "seconds",
        "peak, MB",
        "peak / largest shard",
        title="Adding a full fine-tune",
    )
    for row in ingests:
        peak = f"{row['peak_bytes'] / 1e6:.0f}", f"{row['peak_over_largest_shard']:.2f}"
        table.add_row(str(row["size_gb"]), row["form"], f"{row['seconds']:.1f}", *peak)
    console.print(table)
    columns = (
        "model, GB",
        "experts",
        "method",
        "s",
        "mergekit",
        "/ mergekit",
        "peak, MB",
        "mergekit",
        "/ mergekit",
    )
    table = Table(*columns, title="Merging into a checkpoint")
    for row in merges:
        seconds = (f"{row[key]:.1f}" for key in ("ours_seconds", "mergekit_seconds"))
        peaks = (f"{row[key] / 1e6:.0f}" for key in ("ours_peak_bytes", "mergekit_peak_bytes"))
        time, memory = f"{row['time_over_mergekit']:.2f}", f"{row['memory_over_mergekit']:.2f}"
        table.add_row(
            str(row["size_gb"]), str(row["experts"]), row["method"], *seconds, time, *peaks, memory
        )
    console.print(table)
