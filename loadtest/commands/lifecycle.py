"""`python -m loadtest lifecycle`: what loading an expert costs those who are being answered."""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from loadtest.common import machine
from loadtest.common.console import progress


def command(
    experts: Annotated[
        list[int] | None, typer.Option(min=3, max=48, help="In use before; can be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Experts loaded and unloaded.")] = 5,
) -> None:
    """Measure how long decoding stands still when an expert is loaded, first used, and unloaded."""
    machine.set_environment()
    # So that steps can be made, and timed, one by one.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from loadtest.commands.lifecycle_steps import measure

    rows = []
    for count in experts or (6, 24):
        with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
            rows.append(measure(Path(folder), count, rounds))
        progress.log(machine.round_floats(rows[-1]))
    result = {**machine.describe_machine(), "rounds": rounds, "rows": rows}
    print(json.dumps(machine.round_floats(result)), flush=True)
