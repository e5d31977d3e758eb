"""`tta experts`: the experts of a library, with no server running.

What is drawn is in `experts_output`, the work of commands that make experts in `experts_making`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from adapters.files.facts import PartChoice
from tta_serve.cli.options import (
    LIBRARY,
    BaseFolder,
    LibraryFolder,
    Picture,
    console,
    format_examples,
)

app = typer.Typer(
    no_args_is_help=True, help="The expert library: add, check, merge, compress, export."
)

Name = Annotated[str, typer.Argument(help="The expert's name; NAME@2 is version 2 of it.")]
PlainName = Annotated[str, typer.Argument(help="The expert's name.")]
NewName = Annotated[str, typer.Option("--name", help="The new expert's name.")]
Names = Annotated[
    str, typer.Option("--experts", help="Names of experts, or NAME@2, with commas between.")
]
Rank = Annotated[int | None, typer.Option(help="Keep factors of this rank.", min=1)]
Energy = Annotated[
    float | None,
    typer.Option(help="Keep the least rank with this share of each weight's energy.", min=0, max=1),
]
OneBit = Annotated[
    bool, typer.Option("--one-bit", help="Keep the signs and one scale for each matrix.")
]
Parts = Annotated[
    PartChoice | None,
    typer.Option(
        "--parts", help="Of one bit: keep the matrices of attentions or MLPs alone, and vectors."
    ),
]
Dense = Annotated[bool, typer.Option("--dense", help="Keep the whole change of every weight.")]
Alone = Annotated[
    bool, typer.Option("--alone", help="It may be used in no mix with others, nor in a merge.")
]
Licence = Annotated[str | None, typer.Option(help="The expert's licence.")]
Description = Annotated[str | None, typer.Option(help="What the expert is for.")]
Examples = Annotated[Path | None, typer.Option(help="A file of prompts to route by, one a line.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command(
    epilog=format_examples(
        "tta experts add ./sql-lora --name sql --base ./base",
        "tta experts add ./tuned --name sql --rank 16 --examples sql.txt",
        "tta experts add ./tuned --name sql --one-bit --parts mlp",
    )
)
def add(  # noqa: PLR0913 - one option each
    path: Annotated[
        Path, typer.Argument(help="A PEFT LoRA folder, or a full fine-tune's checkpoint.")
    ],
    name: NewName,
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    rank: Rank = None,
    energy: Energy = None,
    one_bit: OneBit = False,
    parts: Parts = None,
    dense: Dense = False,
    licence: Licence = None,
    description: Description = None,
    examples: Examples = None,
    alone: Alone = False,
    check_prompts: Annotated[
        bool,
        typer.Option(
            "--check-prompts",
            help="Measure on the prompts what acting only from the routing layer up loses.",
        ),
    ] = False,
) -> None:
    """Add a PEFT LoRA folder, or a full fine-tune as its difference from the base."""
    from adapters.library.ingest import OwnerNotes
    from tta_serve.cli import experts_making as making

    form = making.read_form(rank, energy, one_bit=one_bit, parts=parts, dense=dense)
    making.check_folder(path, form, check_prompts=check_prompts)
    notes = OwnerNotes(licence, description, examples, alone)
    making.add_folder(library, path, name, base, form, notes, check_prompts=check_prompts)


@app.command("list", epilog=format_examples("tta experts list", "tta experts list --json"))
def list_(library: LibraryFolder = LIBRARY, as_json: AsJson = False) -> None:
    """List all experts of the library."""
    from tta_serve.cli import experts_output as output

    if as_json:
        output.print_library_json(library)
    else:
        output.print_library(library)


@app.command(epilog=format_examples("tta experts show sql", "tta experts show sql --json"))
def show(name: Name, library: LibraryFolder = LIBRARY, as_json: AsJson = False) -> None:
    """Show what is known of one expert."""
    from tta_serve.cli import experts_output as output

    output.print_expert(library, name, as_json=as_json)


@app.command(epilog=format_examples("tta experts verify", "tta experts verify sql math"))
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Experts, all if none is given.")
    ] = None,
    library: LibraryFolder = LIBRARY,
    as_json: AsJson = False,
) -> None:
    """Read all weights of all versions again: are they what was added?

    Ends with status 2 if some are not.
    """
    from tta_serve.cli import experts_making as making
    from tta_serve.cli import experts_output as output

    found = making.verify_experts(library, names or [])
    output.print_verified(found, as_json=as_json)
    if set(found.values()) != {making.GOOD}:
        raise typer.Exit(2)


@app.command(epilog=format_examples("tta experts remove sql", "tta experts remove sql --purge"))
def remove(
    name: PlainName,
    library: LibraryFolder = LIBRARY,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete the files of its versions too.")
    ] = False,
) -> None:
    """Take an expert out of the library; its versions stay on the disk."""
    from adapters.library.versions import VersionStore

    VersionStore(library).remove(name, purge=purge)
    console.print(f"{name} is removed{' and its files are deleted' if purge else ''}")


@app.command(epilog=format_examples("tta experts restore sql", "tta experts restore sql@1"))
def restore(
    name: Annotated[
        str,
        typer.Argument(help="An expert, for the version before its current one; or NAME@N."),
    ],
    library: LibraryFolder = LIBRARY,
) -> None:
    """Take an older version of an expert back: it becomes the newest one.

    So does the last version of an expert that was removed, unless its files were deleted.
    """
    from tta_serve.cli import experts_making as making

    making.restore_expert(library, name)


@app.command(epilog=format_examples("tta experts base ./moved/base"))
def base(
    folder: Annotated[Path, typer.Argument(help="Where the base is now.")],
    library: LibraryFolder = LIBRARY,
) -> None:
    """Remember another place of the base, once its weights were compared with what it was."""
    from tta_serve.cli import experts_making as making

    making.move_base(library, folder)


@app.command(
    epilog=format_examples(
        "tta experts export sql ./sql-lora --as peft",
        "tta experts export sql ./merged --as checkpoint",
    )
)
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="Where to write; it must not be there.")],
    as_: Annotated[
        Literal["peft", "checkpoint"],
        typer.Option("--as", help="The expert alone, or merged into the base."),
    ],
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
) -> None:
    """Write an expert as a PEFT folder, or merged into the base, for transformers to load."""
    from tta_serve.cli import experts_making as making

    if as_ == "peft":
        making.export_peft(library, name, folder)
    else:
        making.export_checkpoint(library, name, folder, base)
    console.print(f"{name} is in {folder}")


@app.command(
    epilog=format_examples(
        "tta experts compress full --rank 16",
        "tta experts compress sql --energy 0.9 --as sql-small",
    )
)
def compress(
    name: Name,
    library: LibraryFolder = LIBRARY,
    rank: Rank = None,
    energy: Energy = None,
    as_: Annotated[
        str | None, typer.Option("--as", help="A new name; else it is a new version of the expert.")
    ] = None,
) -> None:
    """Make the best factors of a lower rank of an expert of any form."""
    from tta_serve.cli import experts_making as making

    if rank is None and energy is None:
        raise typer.BadParameter("give --rank or --energy")
    making.compress_expert(library, name, rank, energy, as_ or name.partition("@")[0])


@app.command(
    epilog=format_examples(
        "tta experts merge --method ties --experts sql,math --name both --rank 16",
        "tta experts merge --method linear --experts sql,math --name both \\",
        "    --weights 0.7,0.3",
    )
)
def merge(  # noqa: PLR0913 - one option each
    method: Annotated[str, typer.Option(help="As `tta experts methods` lists them.")],
    experts: Names,
    name: NewName,
    library: LibraryFolder = LIBRARY,
    weights: Annotated[
        str | None, typer.Option(help="A number for each expert, with commas between.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="The method's, such as density=0.2; once for each.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of methods that draw at random.")] = 0,
    base: BaseFolder = None,
    rank: Rank = None,
    energy: Energy = None,
    dense: Dense = False,
    licence: Licence = None,
    description: Description = None,
    examples: Examples = None,
) -> None:
    """Merge experts into a new one.

    Without --rank, --energy and --dense its exact factors are kept, where it has such.
    """
    from adapters.library.ingest import OwnerNotes
    from tta_serve.cli import experts_making as making

    form = making.read_form(rank, energy, dense=dense)
    recipe = making.Recipe(
        method, _split_names(experts), weights, _read_weights(weights), _read_options(option), seed
    )
    notes = OwnerNotes(licence, description, examples)
    making.merge_into(library, name, recipe, base, form, notes)


@app.command(epilog=format_examples("tta experts methods", "tta experts methods --json"))
def methods(as_json: AsJson = False) -> None:
    """List the methods of `merge`, with their options and sources."""
    from tta_serve.cli import experts_output as output

    if as_json:
        output.print_methods_json()
    else:
        output.print_methods()


@app.command(
    epilog=format_examples(
        "tta experts diff sql math", "tta experts diff sql math --picture interference.png"
    )
)
def diff(a: Name, b: Name, library: LibraryFolder = LIBRARY, picture: Picture = None) -> None:
    """Compare two experts: how much do they get in each other's way?

    Prints means over the weights of each type of module; the picture is layers by module types.
    """
    from tta_serve.cli import experts_making as making
    from tta_serve.cli import experts_output as output

    rows = making.compare_experts(library, a, b)
    output.print_interference(rows)
    if picture:
        output.draw_interference(rows, picture)


@app.command(
    epilog=format_examples("tta experts twin --experts sql,math --rank 16 --prefix twin"),
)
def twin(
    experts: Names,
    prefix: Annotated[
        str, typer.Option(help="The new experts are PREFIX-shared, and PREFIX-NAME for each.")
    ],
    rank: Annotated[
        int | None,
        typer.Option(
            help="Of the shared expert and of each exclusive one; exact factors without it.", min=1
        ),
    ] = None,
    library: LibraryFolder = LIBRARY,
    shared_weight: Annotated[
        float, typer.Option(help="How much of the sum of all experts is shared.")
    ] = 0.3,
) -> None:
    """Twin-Merging: what experts share as one expert, and what each knows beyond it as another."""
    from tta_serve.cli import experts_making as making

    making.split_twins(library, prefix, _split_names(experts), rank, shared_weight)


def _split_names(names: str) -> list[str]:
    found = [name.strip() for name in names.split(",")]
    if len(set(found)) < len(found):
        raise typer.BadParameter(f"an expert is named twice: {names}")
    return found


def _read_weights(weights: str | None) -> list[float] | None:
    try:
        return [float(w) for w in weights.split(",")] if weights is not None else None
    except ValueError:
        raise typer.BadParameter(
            f"--weights are numbers with commas between, got {weights!r}"
        ) from None


def _read_options(given: Sequence[str] | None) -> Mapping[str, str]:
    if wrong := [item for item in given or () if "=" not in item]:
        raise typer.BadParameter(f"--option is NAME=VALUE, got {wrong[0]!r}")
    return dict(item.split("=", 1) for item in given or ())
