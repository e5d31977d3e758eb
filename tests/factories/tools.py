"""Programs from Debian's packages, which deploy/setup/test_tools.sh fetches."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT


def find_tool(name: str) -> Path:
    """Return where a program is, or skip the test that needs it."""
    fetched = ROOT / ".venv/tools/usr/bin" / name
    found = fetched if fetched.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: bash deploy/setup/test_tools.sh fetches it")
    return Path(found)
