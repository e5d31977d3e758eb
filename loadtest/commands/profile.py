"""`python -m loadtest profile`: where a decoding step's time goes, with and without mixtures."""

import json
import os
import tempfile
from pathlib import Path

from rich.console import Console

from loadtest.common import machine


def command() -> None:
    """Show where a decoding step's time goes, by operator, with and without mixtures."""
    machine.set_environment()
    # So that the operators run where the profiler is.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from loadtest.commands.operator_times import make_table, measure

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        found = measure(Path(folder))
    Console().print(make_table(found))
    result = {**machine.describe_machine(), **found}
    print(json.dumps(machine.round_floats(result)), flush=True)
