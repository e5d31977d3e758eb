"""The command `python -m loadtest`."""

import typer

from loadtest.commands import (
    dense,
    edge,
    engine,
    faults,
    growth,
    http,
    inline,
    kernel,
    library,
    lifecycle,
    pages,
    prefix,
    profile,
    replicas,
    search,
    soak,
    table,
)

app = typer.Typer(help="Benchmarks of tta-serve.", no_args_is_help=True)

app.command("dense")(dense.command)
app.command("edge")(edge.command)
app.command("engine")(engine.command)
app.command("faults")(faults.command)
app.command("growth")(growth.command)
app.command("http")(http.command)
app.command("inline")(inline.command)
app.command("kernel")(kernel.command)
app.command("library")(library.command)
app.command("lifecycle")(lifecycle.command)
app.command("pages")(pages.command)
app.command("prefix")(prefix.command)
app.command("replicas")(replicas.command)
app.command("profile")(profile.command)
app.command("search")(search.command)
app.command("soak")(soak.command)
app.command("table")(table.command)

if __name__ == "__main__":
    app()
