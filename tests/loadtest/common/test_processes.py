"""What a server's processes take."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from loadtest.common.processes import MARK, Tree

MEGABYTES = 64
HOLD = f"held = b'x' * {MEGABYTES * 2**20}"
WAIT = "print(flush=True); input()"
HOLD_AND_FORK = f"""
import os
{HOLD}
if os.fork():
    os.wait()
else:
    {WAIT}
"""


@pytest.fixture
def tree() -> Iterator[Tree]:
    """Two processes that share what the first of them holds."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD_AND_FORK],
        env={**os.environ, MARK: "memory"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    yield Tree(psutil.Process(process.pid), "memory")
    process.communicate(b"\n")


def test_memory_that_processes_share_counts_once(tree: Tree) -> None:
    assert len(tree.list_alive()) == 2
    assert MEGABYTES <= tree.read_memory() / 2**20 < 1.6 * MEGABYTES
