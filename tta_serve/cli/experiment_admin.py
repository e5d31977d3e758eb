"""The commands of `tta experiment` that a running server carries out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tta_serve.cli.options import LOCAL_URL, Url, console, print_table

if TYPE_CHECKING:
    from tta_serve.experiments.design.definition import Definition

Name = Annotated[str, typer.Argument(help="The experiment's name.")]
File = Annotated[Path, typer.Argument(help="The definition, a YAML file.")]
Seen = Annotated[
    int | None,
    typer.Option(
        "--version", help="Only if it is at this version still.", show_default="whatever it is at"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check.")]


def list_(url: Url = LOCAL_URL) -> None:
    """List all experiments, and the kill switch. The last line is JSON."""
    found = _call(url, "GET", "")
    table = Table("experiment", "version", "state", "arms", "stopped")
    for one in found["experiments"]:
        arms = ", ".join(f"{arm} {weight:.3f}" for arm, weight in one["weights"].items())
        table.add_row(
            one["name"], str(one["version"]), one["state"], arms, ", ".join(one["stopped_arms"])
        )
    print_table(table)
    _print_kill(found["kill"])
    _print_json(found)


def show(name: Name, url: Url = LOCAL_URL) -> None:
    """Show an experiment and its history. The last line is JSON."""
    found = _call(url, "GET", f"/{name}")
    _print_experiment(found)
    table = Table("version", "state", "since")
    for past in found["history"]:
        table.add_row(str(past["version"]), past["state"], _format_time(past["changed"]))
    print_table(table)
    _print_json(found)


def create(file: File, url: Url = LOCAL_URL, dry_run: DryRun = False) -> None:
    """Define an experiment, as a draft. The last line is JSON."""
    definition = read_definition(file)
    _put_definition(url, definition, dry_run, If_None_Match="*")


def change(
    name: Name, file: File, url: Url = LOCAL_URL, version: Seen = None, dry_run: DryRun = False
) -> None:
    """Change a draft, or raise the coverage or set the end of what runs. The last line is JSON."""
    definition = read_definition(file)
    if definition.name != name:
        raise typer.BadParameter(f"{file} defines {definition.name!r}, not {name!r}")
    _put_definition(url, definition, dry_run, If_Match=_make_etag(url, name, version))


def start(name: Name, url: Url = LOCAL_URL, version: Seen = None) -> None:
    """Assign units from now on. The last line is JSON."""
    _take_step(url, name, version, "start")


def stop(
    name: Name,
    url: Url = LOCAL_URL,
    version: Seen = None,
    arm: Annotated[
        str | None, typer.Option(help="Stop this arm only; its units get the control.")
    ] = None,
) -> None:
    """Assign no more units, for good. The last line is JSON."""
    _take_step(url, name, version, "stop", {} if arm is None else {"arm": arm})


def kill(
    url: Url = LOCAL_URL,
    to: Annotated[
        str | None,
        typer.Option(help="An entry of the library, or base, the base model.", show_default="base"),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Answer as usual again.")] = False,
) -> None:
    """Answer everybody with the base or an entry, until that is switched off.

    The last line is JSON.
    """
    from tta_serve.cli.admin_client import call

    if off and to is not None:
        raise typer.BadParameter("give --to or --off, not both")
    if off:
        found = call(url, "DELETE", "/admin/kill")
    else:
        found = call(url, "PUT", "/admin/kill", {"to": to or "base"})
    _print_kill(found["kill"])
    _print_json(found)


def feedback(
    ticket: Annotated[str, typer.Argument(help="The request_id in the answer's `merge`.")],
    metric: Annotated[str, typer.Argument(help="The metric's name.")],
    value: Annotated[float, typer.Argument(help="A number.")],
    url: Url = LOCAL_URL,
) -> None:
    """Say what an answer was worth. Said twice it counts once. The last line is JSON."""
    from hashlib import sha256

    from tta_serve.cli.admin_client import call

    body = {"request_id": ticket, "metric": metric, "value": value}
    key = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    _print_json(call(url, "POST", "/v1/feedback", body, Idempotency_Key=key))


def read_definition(file: Path) -> Definition:
    """Read the definition of an experiment.

    Raises:
        ConfigError: The file cannot be read, or is not YAML.
        ExperimentError: The experiment cannot be; the message names the keys at fault.
    """
    import yaml

    from tta_serve.exceptions import ConfigError
    from tta_serve.experiments.design.definition import Definition

    try:
        return Definition.parse(yaml.safe_load(file.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None


def _call(url: str, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
    from tta_serve.cli.admin_client import call

    return call(url, method, f"/admin/experiments{path}", body, **headers)


def _make_etag(url: str, name: str, version: int | None) -> str:
    """Return a version, or the one that the experiment is at, as If-Match wants it."""
    if version is None:
        version = _call(url, "GET", f"/{name}")["version"]
    return f'"{version}"'


def _put_definition(url: str, definition: Definition, dry_run: bool, **headers: str) -> None:
    path = f"/{definition.name}{'?dry_run=true' if dry_run else ''}"
    found = _call(url, "PUT", path, definition.model_dump(mode="json"), **headers)
    _print_experiment(found)
    if dry_run:
        console.print("Nothing was changed.")
    _print_json(found)


def _take_step(url: str, name: str, version: int | None, step: str, body: Any = None) -> None:
    found = _call(url, "POST", f"/{name}/{step}", body, If_Match=_make_etag(url, name, version))
    _print_experiment(found)
    _print_json(found)


def _print_experiment(found: dict[str, Any]) -> None:
    """Print an experiment as the server shows it."""
    policies = {arm["name"]: arm["policy"] for arm in found["definition"]["arms"]}
    title = f"{found['name']}, version {found['version']}, {found['state']}"
    table = Table("arm", "policy", "share", "", title=title)
    for arm, weight in found["weights"].items():
        stopped = "stopped" if arm in found["stopped_arms"] else ""
        table.add_row(arm, policies[arm], f"{weight:.3f}", stopped)
    print_table(table)


def _print_kill(kill: dict[str, Any] | None) -> None:
    if kill:
        console.print(
            f"The kill switch is on: {kill['to']} answers everybody."
            " End it with: tta experiment kill --off"
        )
    else:
        console.print("The kill switch is off.")


def _format_time(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_json(found: dict[str, Any]) -> None:
    typer.echo(json.dumps(found))
