"""`python -m loadtest table`, and that this folder's README has the table of published figures."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.commands.table import TABLES, make_results_table
from loadtest.common.workload import ROOT

LOADTEST = ROOT / "loadtest"
MANY = {"tok_s": 120.5, "tok_s_spread": [100.0, 140.0]}


def test_the_table_of_figures_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "http.json"
    file.write_text(json.dumps({"sides": {"a": {"many": MANY}}}), encoding="utf-8")
    done = CliRunner().invoke(app, ["table", str(file)])
    assert done.output == "|  | 16 at once |\n| --- | --- |\n| a: vLLM, the base | 120.5 |\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("soak.json", "{}", "soak.json has no table; there are tables of http.json"),
        ("http.json", "{", "has no figures of http; write it by"),
        ("http.json", '{"sides": {"a": {"many": {}}}}', "has no figures of http; write it by"),
        ("http.json", None, "No such file"),
    ],
)
def test_what_has_no_table_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["table", str(tmp_path / name)])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_has_the_table_of_published_figures(name: str) -> None:
    file = LOADTEST / "results" / f"{name}.json"
    if not file.exists():
        pytest.skip(f"no figures of {name} are published")
    assert make_results_table(file) in (LOADTEST / "README.md").read_text(encoding="utf-8")
