"""The command `tta doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tta_serve.cli.options import LIBRARY, console, print_json, print_table, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapters.library.checkup import Fault
    from tta_serve.config.sections import ServeConfig


def command(
    library: Annotated[
        Path, typer.Argument(envvar="TTA_LIBRARY", help="The library's folder.")
    ] = LIBRARY,
    config: Annotated[
        Path | None,
        typer.Option(help="A config file: examine it, its library, and this machine for it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="In place of the config's model.source.")
    ] = None,
    machine: Annotated[
        bool, typer.Option("--machine", help="Examine this machine alone, and no library.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report all that is wrong in one pass, with what to do about each of it.

    Of a library it reads the base and all weights of all versions. Ends with status 2 if something
    is wrong.
    """
    experts: Mapping[str, str] = {}
    faults: list[Fault] = []
    said = None
    if config is not None or machine:
        said, faults = _examine_place(config, model)
    if said is not None:
        library = said.library.path
    if not machine and (config is None or said is not None):
        experts, found = _examine_library(library)
        faults += found

    wrong = [fault for fault in faults if fault.grade == "wrong"]
    if as_json:
        print_json({"library": str(library), "experts": experts, "faults": faults})
    elif faults:
        _print_faults(faults)
    if not as_json:
        console.print(f"{len(experts)} experts can be used; {len(wrong)} things are wrong")
    if wrong:
        raise typer.Exit(2)


def _examine_library(library: Path) -> tuple[Mapping[str, str], list[Fault]]:
    """Return a library's experts, and what is wrong in it."""
    from adapters.library.checkup import examine
    from router.artifacts import check_artifacts

    with console.status("Reading ...") as status:
        found = examine(library, lambda place: status.update(f"Reading {place} ..."))
        return found.experts, [*found.faults, *check_artifacts(library, found.experts)]


def _examine_place(file: Path | None, model: str | None) -> tuple[ServeConfig | None, list[Fault]]:
    """Return a config, if it can be used, and what is wrong with it and with this machine."""
    from adapters.errors import AdapterError
    from adapters.library.checkup import Fault
    from tta_serve.cli.machine_checkup import examine_machine
    from tta_serve.config.loading import load
    from tta_serve.exceptions import ConfigError
    from tta_serve.serving.experts.startup import StartupPlan

    said, faults = None, []
    if file is not None:
        try:
            said = load(file, {"model.source": model})
            StartupPlan.of(said)
        except (AdapterError, ConfigError) as error:
            remedy = "`tta config reference` says what each field may be"
            faults.append(Fault(str(file), str(error), remedy))
    return said, [*faults, *examine_machine(said)]


def _print_faults(faults: list[Fault]) -> None:
    table = Table("", "where", "what", "what to do")
    for fault in faults:
        table.add_row(fault.grade, *map(printable, (fault.place, fault.what, fault.remedy)))
    print_table(table)
