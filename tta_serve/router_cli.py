"""`tta router`: what routing learns and measures with no server running, and what a running one would decide."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tta_serve.entries_cli import Seed, bar, gates, learn, offline, pareto
from tta_serve.experts_cli import LIBRARY, BaseFolder, Root, console

if TYPE_CHECKING:
    from router.gate_model import Gate
    from tta_serve.compare_features import Row

Labelled = Annotated[Path, typer.Option("--prompts", help='JSON lines {"prompt": ..., "task": an expert or null}.')]
Split = Annotated[str | None, typer.Option(help='Take only the lines whose "split" this is.')]

app = typer.Typer(no_args_is_help=True, help="Routing: train a gate, learn entries and fronts, compare features, explain.")
app.command()(learn)
app.command()(pareto)
app.command()(gates)


@app.command()
def train(  # noqa: PLR0913 - one option each
    library: Root = LIBRARY,
    base: BaseFolder = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A folder of <expert>.txt and everyday.txt.", show_default="examples")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Such a folder, held out.", show_default="a fifth")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Whose input is read.", show_default="the one servers read")] = None,
    hidden: Annotated[int, typer.Option(min=0, help="Width of a hidden layer; 0 is a linear gate.")] = 0,
    seed: Seed = 0,
    name: Annotated[str, typer.Option(help="The gate's files are NAME.safetensors and NAME.json.")] = "gate",
) -> None:
    """Train the gate: a small head on the features that retrieval reads, with "none of them" as a class."""
    from adapters.library import Library
    from adapters.store import check_name
    from router import gate_training
    from router.probing import feature_layer
    from tta_serve.early import EarlyFeatures, depth
    from tta_serve.prompts import Prompts

    start, opened, folder = time.perf_counter(), Library.open(library), library / "router"
    check_name(folder, name)
    learned = Prompts.read(prompts, opened.names) if prompts else Prompts.of(opened)
    held_out = Prompts.read(validation, opened.names, held_out=True) if validation else None
    model = offline(library, base)
    features = EarlyFeatures(model, feature_layer(depth(model.model)) if layer is None else layer)
    with _watched(len(learned) + (len(held_out) if held_out else 0)) as watch:
        samples = learned.samples(features, watch)
        held = held_out.samples(features, watch) if held_out else None
    with console.status("Training ..."):
        settings = gate_training.Settings(hidden=hidden, seed=seed)
        gate = gate_training.train(opened.digests, features.layer, samples, held, settings)
        gate.save(folder, name)
    _print_gate(gate, time.perf_counter() - start)
    console.print(f"The gate is {folder / name}.safetensors", soft_wrap=True)


@app.command()
def features(
    prompts: Labelled,
    library: Root = LIBRARY,
    base: BaseFolder = None,
    layers: Annotated[str, typer.Option(help="Decoder layers to compare, with commas between.")] = "2,4,6,8,10",
    split: Split = None,
) -> None:
    """Compare features for retrieval on labelled prompts, by quality and cost. The last line is JSON."""
    from adapters.library import Library
    from tta_serve.compare_features import compare, encoders, worth_it
    from tta_serve.prompts import Prompts, read_labelled

    opened, chosen = Library.open(library), _layers(layers)
    labelled = read_labelled(prompts, opened.names, split)
    ways, examples = encoders(offline(library, base), chosen), Prompts.of(opened)
    with _watched(len(ways) * (len(examples) + len(labelled))) as watch:
        rows = compare(ways, examples, labelled, watch)
    worth = worth_it(rows)
    _print_features(rows, worth)
    found = [{**asdict(row), "per_ms": row.per_ms, "worth_it": best} for row, best in zip(rows, worth, strict=True)]
    typer.echo(json.dumps({"prompts": len(labelled), "features": found}))


@app.command("choose-layer")
def choose_layer(  # noqa: PLR0913 - one option each
    prompts: Labelled,
    library: Root = LIBRARY,
    base: BaseFolder = None,
    layers: Annotated[
        str | None, typer.Option(help="Decoder layers, with commas between.", show_default="the lower half")
    ] = None,
    split: Split = None,
    examples: Annotated[int, typer.Option(min=1, help="Prompts of each expert that losses are measured on.")] = 16,
    plot: Annotated[Path | None, typer.Option(help="A PNG to write.")] = None,
) -> None:
    """From which layer should experts act, for routing at its input? The last line is JSON."""
    from adapters.library import Library
    from tta_serve.choose_layer import Row, candidates, choose, losses, picture, qualities, tables
    from tta_serve.early import depth
    from tta_serve.prompts import Prompts, read_labelled

    opened, given = Library.open(library), None if layers is None else _layers(layers)
    labelled, learned = read_labelled(prompts, opened.names, split), Prompts.of(opened)
    model = offline(library, base)
    chosen = given or candidates(depth(model.model))
    with _watched(len(learned) + len(labelled)) as watch:
        found = qualities(model, chosen, learned, labelled, watch)
    experts = {name: (opened.deltas(name), own[:examples]) for name, own in learned.experts.items()}
    with bar("Measuring what experts lose", len(chosen) * len(experts)) as tell:
        lost = [losses(model, layer, experts, tell) for layer in chosen]
    rows = [Row(*row) for row in zip(chosen, found, lost, strict=True)]
    choice = choose(rows)
    for table in tables(rows, choice.layer):
        console.print(table)
    console.print(f"Layer {choice.layer}: {choice.why}", soft_wrap=True)
    if plot:
        picture(rows, choice.layer, plot)
        console.print(f"The picture is {plot}", soft_wrap=True)
    typer.echo(json.dumps({"prompts": len(labelled), "layers": [row.to_json() for row in rows], **asdict(choice)}))


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="What a user might ask.")],
    url: Annotated[str, typer.Option(help="Of a running server.")] = "http://127.0.0.1:8000",
    policy: Annotated[list[str] | None, typer.Option(help="All if left out; once for each.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer.")] = False,
) -> None:
    """What each policy of a running server would do with a prompt, and why. Takes the admin key from TTA_ADMIN_KEY."""
    from tta_serve.explain import ask

    rows = ask(url, prompt, policy or [])
    if as_json:
        typer.echo(json.dumps({"policies": rows}))
    else:
        _print_decisions(rows)


@contextmanager
def _watched(total: int) -> Iterator[Callable[[list[str]], Iterable[str]]]:
    with bar("Reading prompts", total) as tell:

        def watch(texts: list[str]) -> Iterator[str]:
            for text in texts:
                yield text
                tell()

        yield watch


def _layers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise typer.BadParameter(f"--layers are whole numbers with commas between, got {text!r}") from None


def _print_gate(gate: Gate, seconds: float) -> None:
    table = Table("on validation prompts", "")
    for key, value in {**gate.about.figures, "threshold": gate.about.threshold, "seconds": seconds}.items():
        table.add_row(key.replace("_", " "), f"{value:.4g}")
    console.print(table)


def _print_features(rows: list[Row], worth: list[bool]) -> None:
    title = "* no faster choice is as good"
    table = Table("features", "template", "pooling", "scale", "experts", "with base", "AUROC", "ms", "per ms", "", title=title)
    for row, best in zip(rows, worth, strict=True):
        scale, quality = "standardised" if row.standardised else "raw", row.quality
        shares = (f"{value:.3f}" for value in (quality.experts, quality.with_base, quality.auroc))
        table.add_row(row.source, row.template, row.pooling, scale, *shares, f"{row.ms:.2f}", f"{row.per_ms:.2f}", "*" * best)
    console.print(table)


def _print_decisions(rows: list[dict[str, Any]]) -> None:
    table = Table("policy", "mix", "scores", "floor", "why", "ms", "passes")
    for row in rows:
        best = sorted(row["scores"].items(), key=lambda item: -item[1])
        mix = "\n".join(f"{name} {_short(c)}" for name, c in row["experts"].items()) or "base"
        scores = "\n".join(f"{name} {score:.3f}" for name, score in best)
        floor = "" if row["floor"] is None else f"{row['floor']:.3f}"
        why = f"{row['reason']} (answered by {row['fallback']})" if row["fallback"] else row["reason"]
        table.add_row(row["policy"], mix, scores, floor, why, f"{row['router_ms']:.1f}", str(row["passes"]))
    console.print(table)


def _short(coefficient: Any) -> str:
    """A coefficient as one number, or the range of its numbers."""
    values = list(coefficient.values()) if isinstance(coefficient, dict) else coefficient
    return f"{min(values):.2f} to {max(values):.2f}" if isinstance(values, list) else f"{values:.2f}"
