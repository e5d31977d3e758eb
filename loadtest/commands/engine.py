"""`python -m loadtest engine`: four ways of serving a different merge to every request, offline.

The last line of stdout is one JSON object.
"""

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

from loadtest.common import machine
from loadtest.common.console import progress
from loadtest.common.measure import Repeats
from loadtest.common.workload import SHAPES, Shape
from loadtest.sides.session import setup_in

if TYPE_CHECKING:
    from loadtest.commands.engine_parts import EnginePlan
    from loadtest.sides.engines import RunningSides, Setup

SIDE_NAMES = ("base", "stock", "inplace", "mixture")
CONCURRENCIES = (1, 4, 16)
_STOCK_PAIRS = 10


class EnginePart(StrEnum):
    """A part of the benchmark that can be run alone."""

    CELLS = "cells"
    SCALING = "scaling"
    FIRST_TOKEN = "first-token"
    INLINE = "inline"


Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=(
            "3 repeats, fewer of slow sides; 6 and 48 experts; 1 and 16 at once, long prompts"
            " alone."
        ),
    ),
]
Only = Annotated[
    list[EnginePart] | None, typer.Option(help="Run this part alone; can be repeated.")
]
SideNames = Annotated[
    list[str] | None, typer.Option(help=f"One of {', '.join(SIDE_NAMES)}; can be repeated.")
]
ShapeNames = Annotated[
    list[str] | None, typer.Option(help=f"One of {', '.join(SHAPES)}; can be repeated.")
]
AtOnce = Annotated[
    list[int] | None, typer.Option(min=1, max=16, help="Requests at once; can be repeated.")
]
RepeatCount = Annotated[int | None, typer.Option(min=1, help="Repeats; 5, and 3 with --quick.")]
NewMixes = Annotated[
    bool, typer.Option("--new-mixes", help="Mixes never seen before in every repeat of a cell.")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the model, on all sides.")]


def command(  # noqa: PLR0913 - one knob each
    quick: Quick = False,
    only: Only = None,
    side: SideNames = None,
    shape: ShapeNames = None,
    concurrency: AtOnce = None,
    repeats: RepeatCount = None,
    new_mixes: NewMixes = False,
    compiled: Compiled = False,
    seed: Annotated[int, typer.Option(help="Of prompts and mixes.")] = 0,
) -> None:
    """Benchmark the engine offline: base, vLLM's own multi-LoRA, in-place merges, and mixtures."""
    machine.set_environment()
    # So that engines and files are cleared away then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _check(side, SIDE_NAMES)
    _check(shape, SHAPES)
    from loadtest.commands.engine_parts import EnginePlan

    shapes = tuple(SHAPES[s] for s in SHAPES if not shape or s in shape)
    plan = EnginePlan(
        sides=tuple(s for s in SIDE_NAMES if not side or s in side),
        shapes=shapes,
        cells=tuple((s, n) for s in shapes for n in concurrency or _concurrencies(s, quick)),
        repeats=Repeats(repeats or (3 if quick else 5), budget_s=8 if quick else None),
        experts=(6, 48) if quick else (1, 2, 4, 6, 12, 24, 48),
        pairs=20 if quick else 100,
        new_mixes=new_mixes,
        seed=seed,
    )
    _warn_if_busy()
    settings = {
        "quick": quick,
        "compiled": compiled,
        "new_mixes": new_mixes,
        "seed": seed,
        "repeats": plan.repeats.count,
    }
    before = machine.describe_machine()  # its load too, so not after the measuring
    setup = {"eager": not compiled, "inplace_requests": 1 if quick else 4}
    found = _measure(plan, set(only or EnginePart), **setup)
    result = {**before, **settings, **found}
    _show(result, plan)
    print(json.dumps(machine.round_floats(result)), flush=True)


def _warn_if_busy() -> None:
    if os.getloadavg()[0] > 0.5:
        progress.print(
            "[yellow]This machine is busy with something else: the numbers will not be worth"
            " much.[/yellow]"
        )


def _concurrencies(shape: Shape, quick: bool) -> tuple[int, ...]:
    """Return how many requests at once a shape is measured with.

    vLLM's own adapters gather 50 MB a token on a CPU: 16 long prompts take minutes, too many for
    `quick`.
    """
    if not quick:
        return CONCURRENCIES
    return (1,) if shape.counts_prompt else (1, 16)


def _check(given: Sequence[str] | None, known: Sequence[str] | dict[str, Any]) -> None:
    if unknown := set(given or ()) - set(known):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(known)}")


def _measure(plan: EnginePlan, parts: set[EnginePart], **setup: Any) -> dict[str, Any]:
    from loadtest.sides.engines import RunningSides

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        running = RunningSides(setup_in(Path(folder), **setup))
        try:
            result = _cells(running, plan) if EnginePart.CELLS in parts else {}
            if EnginePart.FIRST_TOKEN in parts:
                result |= _first_token(running, plan)
            result |= _bytes(running)
            running.close("stock", "inplace")
            if EnginePart.SCALING in parts:
                result |= _scaling(running, plan)
            result |= _bytes(running)
            running.close()
            return result | (_inline(running.setup, plan) if EnginePart.INLINE in parts else {})
        finally:
            running.close()


def _cells(running: RunningSides, plan: EnginePlan) -> dict[str, Any]:
    from loadtest.commands import engine_parts

    for name in plan.sides:
        with progress.status(f"start {name} ..."):
            running.start(name)
    idle = _idle_cores()
    rows = []
    for row in engine_parts.measure_cells(running, plan):
        rows.append(row)
        progress.log(
            {
                key: value
                for key, value in machine.round_floats(row).items()
                if not key.endswith("spread")
            }
        )
    return {"cells": rows, "idle_cores": idle, "inplace_requests": running.setup.inplace_requests}


def _idle_cores() -> float:
    """Return how many cores the engines use while nobody asks them anything."""
    time.sleep(2)
    before = _cpu_seconds()
    began = time.monotonic()
    time.sleep(2)
    return (_cpu_seconds() - before) / (time.monotonic() - began)


def _cpu_seconds() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in times)


def _first_token(running: RunningSides, plan: EnginePlan) -> dict[str, Any]:
    from loadtest.commands.engine_parts import measure_first_token

    ours = measure_first_token(running.start("mixture"), plan.pairs, plan.seed)
    result = {
        "first_token_new_mix_over_known_mix": ours["new_over_known"],
        "first_token": {"mixture": ours},
    }
    if "stock" in running.sides:
        result["first_token"]["stock"] = measure_first_token(
            running.sides["stock"], _STOCK_PAIRS, plan.seed
        )
    progress.log(machine.round_floats(result))
    return result


def _scaling(running: RunningSides, plan: EnginePlan) -> dict[str, Any]:
    from loadtest.commands import engine_parts

    distinct = engine_parts.measure_distinct_scaling(running, plan)
    progress.log(machine.round_floats(distinct))
    rows = []
    for row in engine_parts.measure_expert_scaling(running, plan):
        rows.append(row)
        progress.log(machine.round_floats(row))
    resident = [row.pop("resident_scaling") for row in rows if "resident_scaling" in row]
    return {
        "distinct_scaling": distinct.pop("distinct_scaling"),
        "distinct": distinct,
        "resident_scaling": resident[0] if resident else None,
        "expert_scaling": rows,
    }


def _inline(setup: Setup, plan: EnginePlan) -> dict[str, Any]:
    """Measure what it costs that mixes are decided in the pass, or by the token."""
    from loadtest.commands.inline import measure_costs
    from loadtest.sides.routed import Inlined

    side = Inlined(setup)
    try:
        quick = plan.repeats.budget_s is not None
        return {"inline": measure_costs(side, quick=quick, seed=plan.seed)}
    finally:
        side.close()


def _bytes(running: RunningSides) -> dict[str, Any]:
    """Return bytes: of the experts' factors in float32, of the bank, and of a slot.

    Bank and slots are those of the sides that are up.
    """
    from loadtest.sides.engines import Mixture, Stock

    factors = [f for expert in running.setup.library for f in expert.factors.values()]
    result = {"bytes_experts": sum(f.a.nbytes + f.b.nbytes for f in factors)}
    for side in running.sides.values():
        if isinstance(side, Mixture):
            result["bytes_bank"], result["bytes_per_slot"] = side.bytes()
        if isinstance(side, Stock):
            result["bytes_per_slot_stock"] = side.bytes_per_slot()
    return result


def _show(result: dict[str, Any], plan: EnginePlan) -> None:
    console = Console()
    if "cells" in result:
        shown = (*plan.sides, "unmixed") if "mixture" in plan.sides else plan.sides
        machine.show_cells(console, result["cells"], shown)
    if "expert_scaling" in result:
        machine.show_experts(console, result["expert_scaling"])
    machine.show_values(
        console,
        {key: value for key, value in result.items() if key not in ("seed", "repeats", "cores")},
    )
