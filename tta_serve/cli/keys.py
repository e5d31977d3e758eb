"""`tta keys`: API keys of a server."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any

import typer

from tta_serve.cli.options import console, format_examples

app = typer.Typer(no_args_is_help=True, help="Make API keys.")

_PREFIX = "tta-"
_BYTES = 32


@app.callback()
def _root() -> None:
    """Make API keys."""


@app.command(
    epilog=format_examples(
        "tta keys new shop",
        "tta keys new nightly --tenant shop --scope infer --scope feedback",
    )
)
def new(
    label: Annotated[str, typer.Argument(help="What logs and metrics call it.")],
    tenant: Annotated[
        str | None, typer.Option(help="Whose it is.", show_default="a tenant of its own")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, feedback, metrics or admin.", show_default="infer"),
    ] = None,
) -> None:
    """Make a key: it is printed this once, and the config has its hash.

    The last lines are the part of the config that lets it in.
    """
    import yaml
    from pydantic import ValidationError

    from tta_serve.config.access import AccessConfig

    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    about: dict[str, Any] = {"sha256": hashlib.sha256(key.encode()).hexdigest()}
    if tenant is not None:
        about["tenant"] = tenant
    if scope:
        about["scopes"] = scope
    try:
        AccessConfig.model_validate({"keys": {label: about}})
    except ValidationError as error:
        raise typer.BadParameter(
            "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        ) from None
    console.print(f"The key, which nobody can tell you again: {key}", soft_wrap=True)
    typer.echo(yaml.safe_dump({"access": {"keys": {label: about}}}, sort_keys=False), nl=False)
