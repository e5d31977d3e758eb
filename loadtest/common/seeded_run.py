"""A benchmark that works in a temporary folder, from a seed."""

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from loadtest.common import machine


class Measure(Protocol):
    """What measures."""

    def __call__(self, folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
        """Return the figures by name."""
        ...


def run_seeded(measure: Measure, *, quick: bool, seed: int) -> None:
    """Measure, and print the figures: a table, and a last line of JSON."""
    machine.set_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        result = {
            **machine.describe_machine(),
            "quick": quick,
            "seed": seed,
            **measure(Path(folder), quick=quick, seed=seed),
        }
    shown = {key: value for key, value in result.items() if key not in ("seed", "cores")}
    machine.show_values(Console(), shown)
    print(json.dumps(machine.round_floats(result)), flush=True)
