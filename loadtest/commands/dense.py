"""`python -m loadtest dense`: task vectors in the weights, one-bit ones in slots, T^3_B's batches.

The last line of stdout is one JSON object.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest.common import machine
from loadtest.common.console import progress


class DensePart(StrEnum):
    """A part of the benchmark that can be run alone."""

    SWITCH = "switch"
    ARRIVALS = "arrivals"
    FOLD = "fold"
    ONE_BIT = "one-bit"
    T3_BATCH = "t3-batch"


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer experts, requests, repeats.")
    ] = False,
    only: Annotated[
        list[DensePart] | None, typer.Option(help="Run this part alone; can be repeated.")
    ] = None,
) -> None:
    """Measure task vectors: switches of the weights, beside slots, folding, one bit, batches."""
    machine.set_environment()
    result: dict[str, Any] = {**machine.describe_machine(), "quick": quick}
    for part, measure in _list_parts().items():
        if not only or part in only:
            with progress.status(f"{part} ..."):
                found = measure(quick)
            progress.log(machine.round_floats(found))
            result |= found
    machine.show_values(Console(), result)
    print(json.dumps(machine.round_floats(result)), flush=True)


def _list_parts() -> Mapping[DensePart, Callable[[bool], dict[str, Any]]]:
    """Return what measures each part; it is told whether to be quick."""
    from loadtest.commands.dense_arrivals import measure_arrivals
    from loadtest.commands.dense_fold import measure_fold
    from loadtest.commands.dense_switch import measure_switch
    from loadtest.commands.one_bit import measure_one_bit

    return {
        DensePart.SWITCH: measure_switch,
        DensePart.ARRIVALS: measure_arrivals,
        DensePart.FOLD: measure_fold,
        DensePart.ONE_BIT: lambda quick: measure_one_bit(3 if quick else 5),
        DensePart.T3_BATCH: _measure_t3_batch,
    }


def _measure_t3_batch(quick: bool) -> dict[str, Any]:
    from deploy.demo.base import ensure_base
    from loadtest.commands.batch_decisions import measure_t3_batch

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        return measure_t3_batch(ensure_base(), Path(folder), quick=quick, seed=0)
