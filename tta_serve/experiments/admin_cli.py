"""The commands of `tta experiment` that a running server carries out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tta_serve.experts_cli import console

if TYPE_CHECKING:
    from router.experiments.definition import Definition

Url = Annotated[str, typer.Option(help="Of a running server; its key is read from TTA_ADMIN_KEY.")]
LOCAL = "http://127.0.0.1:8000"
Name = Annotated[str, typer.Argument(help="The experiment's name.")]
File = Annotated[Path, typer.Argument(help="The definition, a YAML file.")]
Seen = Annotated[
    int | None, typer.Option("--version", help="Only if it is at this version still.", show_default="whatever it is at")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check.")]


def list_(url: Url = LOCAL) -> None:
    """All experiments, and the kill switch. The last line is JSON."""
    found = _call(url, "GET", "")
    table = Table("experiment", "version", "state", "arms", "stopped")
    for one in found["experiments"]:
        arms = ", ".join(f"{arm} {weight:.3f}" for arm, weight in one["weights"].items())
        table.add_row(one["name"], str(one["version"]), one["state"], arms, ", ".join(one["stopped_arms"]))
    console.print(table)
    _say_kill(found["kill"])
    _last(found)


def show(name: Name, url: Url = LOCAL) -> None:
    """One experiment and its history. The last line is JSON."""
    found = _call(url, "GET", f"/{name}")
    _print(found)
    table = Table("version", "state", "since")
    for past in found["history"]:
        table.add_row(str(past["version"]), past["state"], _time(past["changed"]))
    console.print(table)
    _last(found)


def create(file: File, url: Url = LOCAL, dry_run: DryRun = False) -> None:
    """Define an experiment, as a draft. The last line is JSON."""
    definition = read_definition(file)
    _defined(url, definition, dry_run, If_None_Match="*")


def change(name: Name, file: File, url: Url = LOCAL, version: Seen = None, dry_run: DryRun = False) -> None:
    """Change a draft, or raise the coverage or set the end of what runs. The last line is JSON."""
    definition = read_definition(file)
    if definition.name != name:
        raise typer.BadParameter(f"{file} defines {definition.name!r}, not {name!r}")
    _defined(url, definition, dry_run, If_Match=_etag(url, name, version))


def start(name: Name, url: Url = LOCAL, version: Seen = None) -> None:
    """Assign units from now on. The last line is JSON."""
    _moved(url, name, version, "start")


def stop(
    name: Name,
    url: Url = LOCAL,
    version: Seen = None,
    arm: Annotated[str | None, typer.Option(help="Stop this arm only; its units get the control.")] = None,
) -> None:
    """Assign no more units, for good. The last line is JSON."""
    _moved(url, name, version, "stop", {} if arm is None else {"arm": arm})


def kill(
    url: Url = LOCAL,
    to: Annotated[
        str | None, typer.Option(help="An entry of the library, or base, the base model.", show_default="base")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Answer as usual again.")] = False,
) -> None:
    """Answer everybody with the base or an entry, until it is switched off. The last line is JSON."""
    from tta_serve.management import call

    if off and to is not None:
        raise typer.BadParameter("give --to or --off, not both")
    found = call(url, "DELETE", "/admin/kill") if off else call(url, "PUT", "/admin/kill", {"to": to or "base"})
    _say_kill(found["kill"])
    _last(found)


def feedback(
    ticket: Annotated[str, typer.Argument(help="The request_id in the answer's `merge`.")],
    metric: Annotated[str, typer.Argument(help="The metric's name.")],
    value: Annotated[float, typer.Argument(help="A number.")],
    url: Url = LOCAL,
) -> None:
    """Say what an answer was worth. Said twice it counts once. The last line is JSON."""
    from hashlib import sha256

    from tta_serve.management import call

    body = {"request_id": ticket, "metric": metric, "value": value}
    key = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    _last(call(url, "POST", "/v1/feedback", body, Idempotency_Key=key))


def read_definition(file: Path) -> Definition:
    """Raises ConfigError for a file that cannot be read, RouterError for what is wrong in it."""
    import yaml

    from router.experiments.definition import Definition
    from tta_serve.config import ConfigError

    try:
        return Definition.parse(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None


def _call(url: str, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
    from tta_serve.management import call

    return call(url, method, f"/admin/experiments{path}", body, **headers)


def _etag(url: str, name: str, version: int | None) -> str:
    return f'"{_call(url, "GET", f"/{name}")["version"] if version is None else version}"'


def _defined(url: str, definition: Definition, dry_run: bool, **headers: str) -> None:
    query = "?dry_run=true" if dry_run else ""
    found = _call(url, "PUT", f"/{definition.name}{query}", definition.model_dump(mode="json"), **headers)
    _print(found)
    if dry_run:
        console.print("Nothing was changed.")
    _last(found)


def _moved(url: str, name: str, version: int | None, step: str, body: Any = None) -> None:
    found = _call(url, "POST", f"/{name}/{step}", body, If_Match=_etag(url, name, version))
    _print(found)
    _last(found)


def _print(found: dict[str, Any]) -> None:
    """An experiment as the server shows it."""
    policies = {arm["name"]: arm["policy"] for arm in found["definition"]["arms"]}
    table = Table("arm", "policy", "share", "", title=f"{found['name']}, version {found['version']}, {found['state']}")
    for arm, weight in found["weights"].items():
        table.add_row(arm, policies[arm], f"{weight:.3f}", "stopped" if arm in found["stopped_arms"] else "")
    console.print(table)


def _say_kill(kill: dict[str, Any] | None) -> None:
    on = kill and f"The kill switch is on: {kill['to']} answers everybody. End it with: tta experiment kill --off"
    console.print(on or "The kill switch is off.")


def _time(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _last(found: dict[str, Any]) -> None:
    typer.echo(json.dumps(found))
