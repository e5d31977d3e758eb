"""The console that shows progress: standard error, so that standard output has figures alone."""

from rich.console import Console

progress = Console(stderr=True)
