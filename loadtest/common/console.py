"""The console that shows progress: standard error, so that standard output has figures alone."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

progress = Console(stderr=True)


def make_bar() -> Progress:
    """Make a bar that says what is done now, how much of all, and since when."""
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=progress)
