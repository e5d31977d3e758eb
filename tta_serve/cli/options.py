"""What several commands share: the console, printing, options, a progress bar, examples."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from adapters.library.library import Library

# Lines are never broken: what is no terminal has no width, and a terminal breaks them itself.
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

LIBRARY = Path("library")
LOCAL_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(help="Of a running server; its key is read from TTA_ADMIN_KEY.")]
LibraryFolder = Annotated[
    Path, typer.Option("--library", envvar="TTA_LIBRARY", help="The library's folder.")
]
BaseFolder = Annotated[
    Path | None, typer.Option("--base", help="The base's folder; the library remembers the first.")
]


def _check_picture(file: Path | None) -> Path | None:
    """Refuse a place that cannot be written, before the work for the picture is done."""
    if file is None:
        return None
    if file.is_dir():
        raise typer.BadParameter(f"{file} is a folder: name a file in it")
    if not file.parent.is_dir():
        raise typer.BadParameter(f"{file.parent} is no folder: make it first")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise typer.BadParameter(f"{file} may not be written by this user")
    return file


Picture = Annotated[
    Path | None, typer.Option("--picture", help="A PNG to write.", callback=_check_picture)
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="A PNG to write.", callback=_check_picture)
]


def open_usable(root: Path) -> Library:
    """Open a library without the experts that cannot be read, and say which those are, on stderr.

    Raises:
        LibraryError: Nothing in it can be used.
    """
    from adapters.library.library import Library

    library = Library.open(root).usable()
    for name, reason in library.problems.items():
        typer.echo(f"{printable(name)} is left out: {printable(reason)}", err=True)
    return library


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


def printable(text: str) -> str:
    """Return text that does nothing to a terminal but be shown."""
    return text if text.isprintable() else repr(text)


def print_json(value: Any) -> None:
    """Print JSON, in plain ASCII where the locale could not say all that is in it."""
    from adapters.library.manifest import to_json

    text = to_json(value)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        text = json.dumps(json.loads(text), sort_keys=True, indent=1)
    typer.echo(text)


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
