"""`tta config`: what a config may say, what one says, and which one a server serves by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tta_serve.cli.admin_client import call
from tta_serve.cli.options import LOCAL_URL, Url, console, format_examples, print_table

if TYPE_CHECKING:
    from tta_serve.config.sections import ServeConfig

app = typer.Typer(no_args_is_help=True, help="Check, show, document and reload configs.")

File = Annotated[Path, typer.Argument(help="A config file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only see whether it can be done.")]
Base = Annotated[str | None, typer.Option("--model", help="In place of model.source.")]


@app.command(epilog=format_examples("tta config check serve.yaml"))
def check(file: File, model: Base = None) -> None:
    """Check a config as a start does: its fields, the experts, the base. Nothing is started."""
    from tta_serve.serving.experts.startup import StartupPlan

    plan = StartupPlan.of(_load(file, model))
    console.print(
        f"{file} can be served: {len(plan.digests)} experts ({', '.join(plan.digests)}),"
        f" {len(plan.config.policies)} policies, default {plan.config.default_policy}",
        soft_wrap=True,
    )


@app.command(epilog=format_examples("tta config show serve.yaml"))
def show(file: File, model: Base = None) -> None:
    """Print the whole config as YAML: the environment on top, all defaults, no secrets."""
    import yaml

    from tta_serve.config.effective import describe_config

    shown = describe_config(_load(file, model))
    typer.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)


@app.command(epilog=format_examples("tta config schema > serve.schema.json"))
def schema() -> None:
    """Print the JSON schema of configs."""
    from tta_serve.config.sections import ServeConfig

    typer.echo(json.dumps(ServeConfig.model_json_schema(), indent=2))


@app.command(epilog=format_examples("tta config reference"))
def reference() -> None:
    """Print the page that documents every field, as Markdown."""
    from tta_serve.config.reference import make_reference

    typer.echo(make_reference(), nl=False)


@app.command(epilog=format_examples("tta config reload serve.yaml --dry-run"))
def reload(file: File, url: Url = LOCAL_URL, dry_run: DryRun = False) -> None:
    """Let a running server serve by a file's policies, mixes, entries, keys and limits.

    It does so in all replicas or in none. What else differs is listed, and waits for the next
    start. The last line is JSON.
    """
    from tta_serve.config.effective import describe_config
    from tta_serve.config.reload import RELOADABLE, list_differences, select_reloadable

    config = _load(file, None)
    running = call(url, "GET", "/admin/config")
    found = call(url, "PUT", f"/admin/config?dry_run={dry_run}", select_reloadable(config))
    waiting = [
        place
        for place in list_differences(running, describe_config(config))
        if not any(f"{place}.".startswith(f"{able}.") for able in RELOADABLE)
    ]
    if waiting:
        console.print(f"differs until the next start: {', '.join(waiting)}", soft_wrap=True)
    _print_change(found, dry_run=dry_run)


@app.command(epilog=format_examples("tta config history"))
def history(url: Url = LOCAL_URL) -> None:
    """List the configs that a server has served by since its start. The last line is JSON."""
    found = call(url, "GET", "/admin/config/history")
    table = Table("version", "since", "by", "changed")
    for one in found["versions"]:
        table.add_row(str(one["version"]), one["at"], one["by"], ", ".join(one["changed"]))
    print_table(table)
    typer.echo(json.dumps(found))


@app.command(epilog=format_examples("tta config rollback --to 3"))
def rollback(
    to: Annotated[
        int | None, typer.Option(help="A version.", show_default="the one before the present one")
    ] = None,
    url: Url = LOCAL_URL,
) -> None:
    """Let a running server serve by an earlier config again. The last line is JSON."""
    _print_change(call(url, "POST", "/admin/config/rollback", {"to": to}))


def _print_change(found: dict[str, Any], *, dry_run: bool = False) -> None:
    verb = "would change" if dry_run else "changed"
    places = ", ".join(found["changed"]) or "nothing"
    console.print(f"version {found['version']} is in force; {verb}: {places}", soft_wrap=True)
    typer.echo(json.dumps(found))


def _load(file: Path, model: str | None) -> ServeConfig:
    from tta_serve.config.loading import load

    return load(file, {"model.source": model})
