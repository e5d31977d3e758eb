"""`tta router`: what routing learns and measures, and what a running server would decide.

The commands that make entries of a library are in `router_training`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tta_serve.cli.options import (
    LIBRARY,
    LOCAL_URL,
    BaseFolder,
    LibraryFolder,
    Plot,
    console,
    format_examples,
    open_usable,
    print_table,
    show_progress,
)
from tta_serve.cli.router_sampling import load_base
from tta_serve.cli.router_training import (
    Seed,
    choose_activation,
    cocktail,
    gates,
    learn,
    pareto,
    recombine,
)

if TYPE_CHECKING:
    from adapters.library.library import Library

Labelled = Annotated[
    Path, typer.Option("--prompts", help='JSON lines {"prompt": ..., "task": an expert or null}.')
]
GatePrompts = Annotated[
    Path | None,
    typer.Option(
        help="A folder of <expert>.txt and everyday.txt, and of prompts that want two experts in"
        " <expert>+<expert>.txt.",
        show_default="examples",
    ),
]
Validation = Annotated[
    Path | None,
    typer.Option(help="Such a folder, to calibrate by.", show_default="a fifth, or a voice"),
]
Voices = Annotated[
    Path | None,
    typer.Option(
        help=(
            "A folder of <voice>.jsonl, each of another person or source, which are left out one"
            ' at a time to calibrate by. A line is {"prompt": ..., "task": an expert or null}.'
        )
    ),
]
TwinPrefix = Annotated[
    str | None, typer.Option("--twin", help="Choose among the exclusive parts of this prefix.")
]
Split = Annotated[str | None, typer.Option(help='Take only the lines whose "split" this is.')]

app = typer.Typer(
    no_args_is_help=True,
    help="Routing: train a gate, learn entries and fronts, compare features, explain.",
)
app.command(
    epilog=format_examples(
        "tta router learn --name both --experts sql,math",
        "tta router learn --name all --loss entropy --granularity expert",
        "tta router learn --name cat --loss references --examples two_skills.jsonl",
    )
)(learn)
app.command(
    epilog=format_examples(
        "tta router cocktail --name mine --examples five.jsonl",
        "tta router cocktail --name mine --examples five.jsonl --tau 0.5",
    )
)(cocktail)
app.command(epilog=format_examples("tta router pareto --name demo --picture front.png"))(pareto)
app.command(
    epilog=format_examples(
        "tta router recombine --name parts --experts sql,math,dates",
        "tta router recombine --name parts --thirds --replace",
    )
)(recombine)
app.command(
    "choose-activation", epilog=format_examples("tta router choose-activation --experts sql,math")
)(choose_activation)
app.command(epilog=format_examples("tta router gates --steps 100 --replace"))(gates)


@app.command(
    epilog=format_examples(
        "tta router train",
        "tta router train --prompts prompts/train --validation prompts/validation",
        "tta router train --prompts prompts/train --voices voices",
    )
)
def train(  # noqa: PLR0913 - one option each
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    prompts: GatePrompts = None,
    validation: Validation = None,
    voices: Voices = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="Whose input is read.", show_default="the one servers read"),
    ] = None,
    hidden: Annotated[
        int, typer.Option(min=0, help="Width of a hidden layer; 0 is a linear gate.")
    ] = 0,
    seed: Seed = 0,
    name: Annotated[
        str, typer.Option(help="The gate's files are NAME.safetensors and NAME.json.")
    ] = "gate",
    twin: TwinPrefix = None,
) -> None:
    """Train the gate, a small head on the features that retrieval reads.

    It knows "none of them" as a class.
    """
    from adapters.library.names import check_name
    from router.probing import feature_layer
    from tta_serve.cli.router_output import print_gate
    from tta_serve.offline import train_gate
    from tta_serve.offline.features import EarlyFeatures, count_layers
    from tta_serve.offline.labelled_prompts import Prompts, read_voices

    start, opened, folder = time.perf_counter(), open_usable(library), library / "router"
    check_name(folder, name)
    classes = opened.classes if twin is None else _list_exclusive(opened, twin)
    learned = Prompts.read(prompts, classes) if prompts else Prompts.from_library(opened, classes)
    held_out = Prompts.read(validation, classes, held_out=True) if validation else None
    spoken = read_voices(voices, classes) if voices else {}
    model = load_base(library, base)
    features = EarlyFeatures(
        model, feature_layer(count_layers(model.model)) if layer is None else layer
    )
    every = [learned, *spoken.values(), *([held_out] if held_out else ())]
    with _watch_prompts(sum(map(len, every))) as watch:
        samples = learned.read_samples(features, watch)
        by_voice = {name: own.read_samples(features, watch) for name, own in spoken.items()}
        held = held_out.read_samples(features, watch) if held_out else None
    with console.status("Training ..."):
        settings = train_gate.GateSettings(hidden=hidden, seed=seed)
        known = {name: opened.digests[name] for name in classes}
        gate = train_gate.train(known, features.layer, samples, held, by_voice, settings)
        gate.save(folder, name)
    print_gate(gate, time.perf_counter() - start)
    console.print(f"The gate is {folder / name}.safetensors")


@app.command(epilog=format_examples("tta router features --prompts labelled.jsonl --layers 2,4,6"))
def features(
    prompts: Labelled,
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    layers: Annotated[
        str, typer.Option(help="Decoder layers to compare, with commas between.")
    ] = "2,4,6,8,10",
    split: Split = None,
) -> None:
    """Compare features for retrieval on labelled prompts, by quality and cost.

    The last line is JSON.
    """
    from tta_serve.cli.router_output import print_features
    from tta_serve.offline.compare_features import compare_features, list_encoders, mark_worthwhile
    from tta_serve.offline.labelled_prompts import Prompts, read_labelled

    opened, chosen = open_usable(library), _read_layers(layers)
    labelled = read_labelled(prompts, opened.classes, split)
    ways, examples = list_encoders(load_base(library, base), chosen), Prompts.from_library(opened)
    with _watch_prompts(len(ways) * (len(examples) + len(labelled))) as watch:
        rows = compare_features(ways, examples, labelled, watch)
    worth = mark_worthwhile(rows)
    print_features(rows, worth)
    found = [
        {**asdict(row), "per_ms": row.per_ms, "worth_it": best}
        for row, best in zip(rows, worth, strict=True)
    ]
    typer.echo(json.dumps({"prompts": len(labelled), "features": found}))


@app.command(
    "choose-layer",
    epilog=format_examples("tta router choose-layer --prompts labelled.jsonl --plot layers.png"),
)
def choose_layer(  # noqa: PLR0913 - one option each
    prompts: Labelled,
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Decoder layers, with commas between.", show_default="the lower half"),
    ] = None,
    split: Split = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Prompts of each expert that losses are measured on.")
    ] = 16,
    plot: Plot = None,
) -> None:
    """From which layer should experts act, for routing at its input? The last line is JSON."""
    from tta_serve.offline.choose_layer import (
        LayerRow,
        choose_layer,
        draw_layers,
        judge_layers,
        list_candidates,
        make_tables,
        measure_losses,
    )
    from tta_serve.offline.features import count_layers
    from tta_serve.offline.labelled_prompts import Prompts, read_labelled

    opened, given = open_usable(library), None if layers is None else _read_layers(layers)
    labelled, learned = read_labelled(prompts, opened.classes, split), Prompts.from_library(opened)
    model = load_base(library, base)
    chosen = given or list_candidates(count_layers(model.model))
    with _watch_prompts(len(learned) + len(labelled)) as watch:
        found = judge_layers(model, chosen, learned, labelled, watch)
    experts = {name: (opened.deltas(name), own[:examples]) for name, own in learned.experts.items()}
    with show_progress("Measuring what experts lose", len(chosen) * len(experts)) as tell:
        lost = [measure_losses(model, layer, experts, tell) for layer in chosen]
    rows = [LayerRow(*row) for row in zip(chosen, found, lost, strict=True)]
    choice = choose_layer(rows)
    for table in make_tables(rows, choice.layer):
        print_table(table)
    console.print(f"Layer {choice.layer}: {choice.why}")
    if plot:
        draw_layers(rows, choice.layer, plot)
        console.print(f"The picture is {plot}")
    typer.echo(
        json.dumps(
            {"prompts": len(labelled), "layers": [row.to_json() for row in rows], **asdict(choice)}
        )
    )


@app.command(
    epilog=format_examples(
        'tta router explain "How many names are in staff?"',
        'tta router explain "What is 3 + 4?" --policy retrieval --json',
    )
)
def explain(
    prompt: Annotated[str, typer.Argument(help="What a user might ask.")],
    url: Annotated[str, typer.Option(help="Of a running server.")] = LOCAL_URL,
    policy: Annotated[
        list[str] | None, typer.Option(help="All if left out; once for each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer.")] = False,
) -> None:
    """Ask a running server what each policy would do with a prompt, and why.

    Takes the admin key from TTA_ADMIN_KEY.
    """
    from tta_serve.cli.admin_client import explain as ask
    from tta_serve.cli.router_output import print_decisions, print_examples

    found = ask(url, prompt, policy or [])
    if as_json:
        typer.echo(json.dumps(found))
    else:
        print_decisions(found["policies"])
        print_examples(found.get("examples", []))


@contextmanager
def _watch_prompts(total: int) -> Iterator[Callable[[list[str]], Iterable[str]]]:
    """Show a progress bar meanwhile, and yield what moves it on for each prompt that passes by."""
    with show_progress("Reading prompts", total) as tell:

        def watch(texts: list[str]) -> Iterator[str]:
            for text in texts:
                yield text
                tell()

        yield watch


def _list_exclusive(library: Library, prefix: str) -> list[str]:
    """Return the names of the exclusive parts of a prefix.

    Raises:
        BadParameter: There are none.
    """
    parts = library.parts.items()
    found = [name for name, part in parts if (part.prefix, part.role) == (prefix, "exclusive")]
    if not found:
        known = ", ".join(sorted({part.prefix for _, part in parts})) or "none"
        raise typer.BadParameter(f"--twin: no parts have the prefix {prefix!r}; known are: {known}")
    return found


def _read_layers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise typer.BadParameter(
            f"--layers are whole numbers with commas between, got {text!r}"
        ) from None
