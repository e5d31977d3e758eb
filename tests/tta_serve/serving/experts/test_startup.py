"""A library whose experts change another base stops the start."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import LibraryError
from tests.factories.experts import make_expert, make_plain_base
from tta_serve.cli.experts import app
from tta_serve.config import load
from tta_serve.serving.experts.startup import StartupPlan


def test_a_library_of_another_base_stops_the_start(tmp_path: Path) -> None:
    mine = make_plain_base(tmp_path / "mine", 0)
    other = make_plain_base(tmp_path / "other", 1)
    make_expert(tmp_path / "sql", mine, seed=0, layers=range(2))
    arguments = [
        "add",
        str(tmp_path / "sql"),
        "--name=sql",
        f"--base={mine}",
        f"--library={tmp_path / 'library'}",
    ]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    settings = {
        "model.id": "m",
        "library.path": str(tmp_path / "library"),
        "default_policy": "base",
    }
    assert StartupPlan.of(load(None, {**settings, "model.source": str(mine)})).digests.keys() == {
        "sql"
    }
    with pytest.raises(LibraryError, match="Experts of another base need a library of their own"):
        StartupPlan.of(load(None, {**settings, "model.source": str(other)}))
