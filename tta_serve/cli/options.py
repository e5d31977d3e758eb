"""What several commands share: the console, printing, options, a progress bar, examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

# Lines are never broken: what is no terminal has no width, and a terminal breaks them itself.
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

LIBRARY = Path("library")
LOCAL_URL = "http://127.0.0.1:8000"
LibraryFolder = Annotated[
    Path, typer.Option("--library", envvar="TTA_LIBRARY", help="The library's folder.")
]
BaseFolder = Annotated[
    Path | None, typer.Option("--base", help="The base's folder; the library remembers the first.")
]
Picture = Annotated[Path | None, typer.Option("--picture", help="A PNG to write.")]


def format_examples(*commands: str) -> str:
    """Return the last words of a command's help: examples of it, one a line."""
    return "\n".join(["\nExamples:", *(f"  {command}" for command in commands)])


def print_table(table: Table) -> None:
    """Print a table, drawn on a terminal, else as lines of cells with tabs between them.

    Nothing is cut off where there is no terminal, whose width is not known. The lines of a cell
    are then joined by commas, so that each row is one line.
    """
    if console.is_terminal:
        console.print(table, soft_wrap=False)
        return

    if table.title:
        typer.echo(table.title)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    for row in ([column.header for column in table.columns], *rows):
        typer.echo("\t".join(_one_line(str(cell)) for cell in row))


def _one_line(cell: str) -> str:
    return ", ".join(cell.replace("\t", " ").splitlines())


@contextmanager
def show_progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar meanwhile.

    Yields:
        What moves it on by one.
    """
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
