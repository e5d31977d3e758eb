"""The command `tta doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tta_serve.cli.options import LIBRARY, console, print_json, print_table, printable

if TYPE_CHECKING:
    from adapters.library.checkup import Fault


def command(
    library: Annotated[
        Path, typer.Argument(envvar="TTA_LIBRARY", help="The library's folder.")
    ] = LIBRARY,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report all that is wrong in a library in one pass, with what to do about each of it.

    Reads the base and all weights of all versions. Ends with status 2 if something is wrong.
    """
    from adapters.library.checkup import examine
    from router.artifacts import check_artifacts

    with console.status("Reading ...") as status:
        found = examine(library, lambda place: status.update(f"Reading {place} ..."))
        faults = [*found.faults, *check_artifacts(library, found.experts)]
    wrong = [fault for fault in faults if fault.grade == "wrong"]
    if as_json:
        print_json({"library": str(library), "experts": found.experts, "faults": faults})
    elif faults:
        _print_faults(faults)
    if not as_json:
        console.print(f"{len(found.experts)} experts can be used; {len(wrong)} things are wrong")
    if wrong:
        raise typer.Exit(2)


def _print_faults(faults: list[Fault]) -> None:
    table = Table("", "where", "what", "what to do")
    for fault in faults:
        table.add_row(fault.grade, *map(printable, (fault.place, fault.what, fault.remedy)))
    print_table(table)
