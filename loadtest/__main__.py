"""`python -m loadtest`."""

import typer

from loadtest import edge, engine, inline, kernel, library, soak

app = typer.Typer(help="Benchmarks of tta-serve.", no_args_is_help=True)

app.command("edge")(edge.command)
app.command("engine")(engine.command)
app.command("inline")(inline.command)
app.command("kernel")(kernel.command)
app.command("library")(library.command)
app.command("lifecycle")(engine.lifecycle)
app.command("profile")(engine.profile)
app.command("soak")(soak.command)

if __name__ == "__main__":
    app()
