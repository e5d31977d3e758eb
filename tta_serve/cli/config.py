"""`tta config`: what a config may say, and what one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tta_serve.cli.options import console, format_examples

if TYPE_CHECKING:
    from tta_serve.config.sections import ServeConfig

app = typer.Typer(no_args_is_help=True, help="Check, show and document configs.")

File = Annotated[Path, typer.Argument(help="A config file.")]
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


def _load(file: Path, model: str | None) -> ServeConfig:
    from tta_serve.config.loading import load

    return load(file, {"model.source": model})
