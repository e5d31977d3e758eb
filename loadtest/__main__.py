"""`python -m loadtest`."""

import typer

from loadtest import engine

app = typer.Typer(help="Benchmarks of tta-serve.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `engine` a command of its own, whatever other commands there are."""


app.command("engine")(engine.command)

if __name__ == "__main__":
    app()
