"""`python -m loadtest table`: the table of published figures, as this folder's README has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.commands.http_figures import make_rows
from loadtest.common.result_files import make_markdown

TABLES: dict[str, Callable[[dict[str, Any]], list[list[str]]]] = {
    "http": lambda result: make_rows(result["sides"]),
}
"""What makes the table of a benchmark's figures, its head first."""


def command(
    file: Annotated[
        Path,
        typer.Argument(help="As --out wrote it: loadtest/results/http.json.", dir_okay=False),
    ],
) -> None:
    """Print the Markdown table of a benchmark's figures."""
    try:
        text = make_results_table(file)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from error
    print(text, end="")


def make_results_table(file: Path) -> str:
    """Return the Markdown table of the figures in a file.

    Raises:
        OSError: There is no such file.
        ValueError: Its figures are of no benchmark that has a table, or it has none.
    """
    if file.stem not in TABLES:
        there = ", ".join(f"{name}.json" for name in TABLES)
        raise ValueError(f"{file.name} has no table; there are tables of {there}")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return make_markdown(TABLES[file.stem](result))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        wanted = f"write it by python -m loadtest {file.stem} --out FOLDER"
        raise ValueError(f"{file.name} has no figures of {file.stem}; {wanted}") from error
