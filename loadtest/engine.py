"""`python -m loadtest engine`: what to run, in which order. The last line of stdout is one JSON object."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer
from rich.console import Console

from loadtest import report
from loadtest.measure import Repeats
from loadtest.workload import EXPERTS, SHAPES, Shape

if TYPE_CHECKING:
    from loadtest.parts import Plan
    from loadtest.sides import Running, Setup

SIDE_NAMES = ("base", "stock", "inplace", "mixture")
CONCURRENCIES = (1, 4, 16)
_STOCK_PAIRS = 10

progress = Console(stderr=True)


class Part(StrEnum):
    """Parts that can be run alone."""

    CELLS = "cells"
    SCALING = "scaling"
    FIRST_TOKEN = "first-token"
    INLINE = "inline"


def command(  # noqa: PLR0913 - one knob each
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="3 repeats, fewer of slow sides; 6 and 48 experts; 1 and 16 at once, long prompts alone."
        ),
    ] = False,
    only: Annotated[list[Part] | None, typer.Option(help="Run this part alone; can be repeated.")] = None,
    side: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(SIDE_NAMES)}; can be repeated.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(SHAPES)}; can be repeated.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(min=1, max=16, help="Requests at once; can be repeated.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Repeats; 5, and 3 with --quick.")] = None,
    new_mixes: Annotated[bool, typer.Option("--new-mixes", help="Mixes never seen before in every repeat of a cell.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model, on all sides.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts and mixes.")] = 0,
) -> None:
    """Benchmark the engine offline: base, vLLM's own multi-LoRA, in-place merges, and mixtures."""
    report.environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines and files are cleared away then too
    _check(side, SIDE_NAMES)
    _check(shape, SHAPES)
    from loadtest.parts import Plan

    shapes = tuple(SHAPES[s] for s in SHAPES if not shape or s in shape)
    plan = Plan(
        sides=tuple(s for s in SIDE_NAMES if not side or s in side),
        shapes=shapes,
        cells=tuple((s, n) for s in shapes for n in concurrency or _concurrencies(s, quick)),
        repeats=Repeats(repeats or (3 if quick else 5), budget_s=8 if quick else None),
        experts=(6, 48) if quick else (1, 2, 4, 6, 12, 24, 48),
        pairs=20 if quick else 100,
        new_mixes=new_mixes,
        seed=seed,
    )
    if os.getloadavg()[0] > 0.5:
        progress.print("[yellow]This machine is busy with something else: the numbers will not be worth much.[/yellow]")
    settings = {"quick": quick, "compiled": compiled, "new_mixes": new_mixes, "seed": seed, "repeats": plan.repeats.count}
    result = {
        **report.machine(),
        **settings,
        **_measure(plan, set(only or Part), eager=not compiled, inplace_requests=1 if quick else 4),
    }
    _show(result, plan)
    print(json.dumps(report.rounded(result)), flush=True)


def _concurrencies(shape: Shape, quick: bool) -> tuple[int, ...]:
    """vLLM's own adapters gather 50 MB a token on a CPU: 16 long prompts take minutes, too many for `quick`."""
    if not quick:
        return CONCURRENCIES
    return (1,) if shape.counts_prompt else (1, 16)


def lifecycle(
    experts: Annotated[list[int] | None, typer.Option(min=3, max=48, help="In use before; can be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Experts loaded and unloaded.")] = 5,
) -> None:
    """Measure how long decoding stands still when an expert is loaded, first used, and unloaded."""
    report.environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that steps can be made, and timed, one by one
    from loadtest.lifecycle import measure

    rows = []
    for count in experts or (6, 24):
        with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
            rows.append(measure(Path(folder), count, rounds))
        progress.log(report.rounded(rows[-1]))
    print(json.dumps(report.rounded({**report.machine(), "rounds": rounds, "rows": rows})), flush=True)


def profile() -> None:
    """Show where a decoding step's time goes, by operator, with and without mixtures."""
    report.environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the operators run where the profiler is
    from loadtest.profile import measure, table

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        found = measure(Path(folder))
    Console().print(table(found))
    print(json.dumps(report.rounded({**report.machine(), **found})), flush=True)


def _check(given: Sequence[str] | None, known: Sequence[str] | dict[str, Any]) -> None:
    if unknown := set(given or ()) - set(known):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(known)}")


def _measure(plan: Plan, parts: set[Part], **setup: Any) -> dict[str, Any]:
    from loadtest.sides import Running

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        running = Running(setup_in(Path(folder), **setup))
        try:
            result = _cells(running, plan) if Part.CELLS in parts else {}
            if Part.FIRST_TOKEN in parts:
                result |= _first_token(running, plan)
            result |= _bytes(running)
            running.close("stock", "inplace")
            if Part.SCALING in parts:
                result |= _scaling(running, plan)
            result |= _bytes(running)
            running.close()
            return result | (_inline(running.setup, plan) if Part.INLINE in parts else {})
        finally:
            running.close()


def setup_in(folder: Path, **more: Any) -> Setup:
    from adapters.library import Library
    from deploy.demo.base import ensure_base
    from loadtest.sides import Setup

    return Setup(ensure_base(), Library.open(EXPERTS), folder, **more)


def _cells(running: Running, plan: Plan) -> dict[str, Any]:
    from loadtest import parts

    for name in plan.sides:
        with progress.status(f"start {name} ..."):
            running.start(name)
    idle = _idle_cores()
    rows = []
    for row in parts.cells(running, plan):
        rows.append(row)
        progress.log({key: value for key, value in report.rounded(row).items() if not key.endswith("spread")})
    return {"cells": rows, "idle_cores": idle, "inplace_requests": running.setup.inplace_requests}


def _idle_cores() -> float:
    """Cores that the engines use while nobody asks them anything."""
    time.sleep(2)
    before, began = _cpu_seconds(), time.monotonic()
    time.sleep(2)
    return (_cpu_seconds() - before) / (time.monotonic() - began)


def _cpu_seconds() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in times)


def _first_token(running: Running, plan: Plan) -> dict[str, Any]:
    from loadtest.parts import first_token

    ours = first_token(running.start("mixture"), plan.pairs, plan.seed)
    result = {"first_token_new_mix_over_known_mix": ours["new_over_known"], "first_token": {"mixture": ours}}
    if "stock" in running.sides:
        result["first_token"]["stock"] = first_token(running.sides["stock"], _STOCK_PAIRS, plan.seed)
    progress.log(report.rounded(result))
    return result


def _scaling(running: Running, plan: Plan) -> dict[str, Any]:
    from loadtest import parts

    distinct = parts.distinct_scaling(running, plan)
    progress.log(report.rounded(distinct))
    rows = []
    for row in parts.expert_scaling(running, plan):
        rows.append(row)
        progress.log(report.rounded(row))
    resident = [row.pop("resident_scaling") for row in rows if "resident_scaling" in row]
    return {
        "distinct_scaling": distinct.pop("distinct_scaling"),
        "distinct": distinct,
        "resident_scaling": resident[0] if resident else None,
        "expert_scaling": rows,
    }


def _inline(setup: Setup, plan: Plan) -> dict[str, Any]:
    """What it costs that mixes are decided in the pass, or by the token."""
    from loadtest.inline import costs
    from loadtest.routed import Inlined

    side = Inlined(setup)
    try:
        return {"inline": costs(side, quick=plan.repeats.budget_s is not None, seed=plan.seed)}
    finally:
        side.close()


def _bytes(running: Running) -> dict[str, Any]:
    """Bytes of the six experts' factors in float32, of the bank, and of a slot; of those sides that are up."""
    from loadtest.sides import Mixture, Stock

    factors = [f for expert in running.setup.library for f in expert.factors.values()]
    result = {"bytes_experts": sum(f.a.nbytes + f.b.nbytes for f in factors)}
    for side in running.sides.values():
        if isinstance(side, Mixture):
            result["bytes_bank"], result["bytes_per_slot"] = side.bytes()
        if isinstance(side, Stock):
            result["bytes_per_slot_stock"] = side.bytes_per_slot()
    return result


def _show(result: dict[str, Any], plan: Plan) -> None:
    console = Console()
    if "cells" in result:
        shown = (*plan.sides, "unmixed") if "mixture" in plan.sides else plan.sides
        report.show_cells(console, result["cells"], shown)
    if "expert_scaling" in result:
        report.show_experts(console, result["expert_scaling"])
    report.show_values(console, {key: value for key, value in result.items() if key not in ("seed", "repeats", "cores")})
