"""What a benchmark leaves in files."""

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

from loadtest.common.result_files import describe_command, make_markdown, write_results

ROWS = [["", "tokens/s"], ["a", "12"], ["b", ""]]


def draw() -> Figure:
    figure = Figure()
    figure.subplots().set_title("tokens a second")
    return figure


def test_figures_table_and_picture_have_the_name_of_the_benchmark(tmp_path: Path) -> None:
    write_results(tmp_path, "some", {"sides": {"a": 12.5}}, ROWS, draw())
    assert {file.name for file in tmp_path.iterdir()} == {"some.json", "some.md", "some.svg"}
    written = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))
    assert written == {"sides": {"a": 12.5}}
    assert (tmp_path / "some.md").read_text(encoding="utf-8") == make_markdown(ROWS)
    assert "tokens a second" in (tmp_path / "some.svg").read_text(encoding="utf-8")


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        write_results(tmp_path, "some", {}, ROWS, draw())
        texts.append((tmp_path / "some.svg").read_bytes())
    assert texts[0] == texts[1]


def test_a_table_in_markdown() -> None:
    assert make_markdown(ROWS) == "|  | tokens/s |\n| --- | --- |\n| a | 12 |\n| b |  |\n"


app = typer.Typer()


@app.command("some")
def command(  # noqa: PLR0913 - one option each
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick")] = False,
    ray: bool = True,
    part: Annotated[list[str] | None, typer.Option()] = None,
    trace: Path | None = None,
    out: Path | None = None,
) -> None:
    print(describe_command(context))


@app.callback()
def several() -> None:
    """So that the command has a name."""


@pytest.mark.parametrize(
    ("given", "described"),
    [
        ([], ""),
        (["--quick", "--no-ray"], " --quick --no-ray"),
        (["--part", "one", "--part", "two"], " --part one --part two"),
        (["--trace", "/home/me/trace.jsonl", "--out", "/home/me"], " --trace trace.jsonl"),
    ],
)
def test_a_command_is_described_as_it_was_given(given: list[str], described: str) -> None:
    done = CliRunner().invoke(app, ["some", *given])
    assert done.output == f"python -m loadtest some{described}\n"
