"""`tta experts`: add, check, merge, compress and export the experts of a library, with no server running."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from adapters.checkpoint import Checkpoint
    from adapters.deltas import Deltas
    from adapters.expert import LowRank
    from adapters.forms import Form
    from adapters.interference import Row
    from adapters.manifest import About, Manifest
    from adapters.store import Store
    from tta_serve.offline import Offline

app = typer.Typer(no_args_is_help=True, help="The expert library: add, check, merge, compress, export.")
console = Console(highlight=False, markup=False, emoji=False)

LIBRARY = Path("library")
Root = Annotated[Path, typer.Option("--library", envvar="TTA_LIBRARY", help="The library's folder.")]
BaseFolder = Annotated[Path | None, typer.Option("--base", help="The base's folder; the library remembers the first.")]
Name = Annotated[str, typer.Argument(help="The expert's name.")]
NewName = Annotated[str, typer.Option("--name", help="The new expert's name.")]
Names = Annotated[str, typer.Option("--experts", help="Names of experts, with commas between.")]
Rank = Annotated[int | None, typer.Option(help="Keep factors of this rank.", min=1)]
Energy = Annotated[
    float | None, typer.Option(help="Keep the least rank with this share of each weight's energy.", min=0, max=1)
]
OneBit = Annotated[bool, typer.Option("--one-bit", help="Keep the signs and one scale for each matrix.")]
Dense = Annotated[bool, typer.Option("--dense", help="Keep the whole change of every weight.")]
Licence = Annotated[str | None, typer.Option(help="The expert's licence.")]
Description = Annotated[str | None, typer.Option(help="What the expert is for.")]
Examples = Annotated[Path | None, typer.Option(help="A file of prompts to route by, one a line.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def add(  # noqa: PLR0913 - one option each
    path: Annotated[Path, typer.Argument(help="A PEFT LoRA folder, or a full fine-tune's checkpoint.")],
    name: NewName,
    library: Root = LIBRARY,
    base: BaseFolder = None,
    rank: Rank = None,
    energy: Energy = None,
    one_bit: OneBit = False,
    dense: Dense = False,
    licence: Licence = None,
    description: Description = None,
    examples: Examples = None,
    check_prompts: Annotated[
        bool, typer.Option("--check-prompts", help="Measure on the prompts what acting only from the routing layer up loses.")
    ] = False,
) -> None:
    """Add a PEFT LoRA folder, or a full fine-tune as its difference from the base."""
    from adapters.library import EXAMPLES_FILE, opened
    from adapters.manifest import About
    from adapters.peft_format import is_peft_folder
    from adapters.store import Store

    form, store = _form(rank, energy, one_bit=one_bit, dense=dense), Store(library)
    if is_peft_folder(path) and (one_bit or dense):
        raise typer.BadParameter("a PEFT folder is low-rank as it is: leave --one-bit and --dense out")
    if not is_peft_folder(path) and not (rank or energy or one_bit or dense):
        raise typer.BadParameter("a full fine-tune needs one of --rank, --energy, --one-bit and --dense")
    if check_prompts and (one_bit or dense):
        raise typer.BadParameter("--check-prompts is for experts that slots serve: leave --one-bit and --dense out")
    with console.status("Reading the base ..."):
        checkpoint = store.checkpoint(base)
    source, deltas = opened(path, checkpoint)
    own = path / EXAMPLES_FILE
    prompts = _prompts(examples or (own if own.is_file() else None))
    if check_prompts and not prompts:
        raise typer.BadParameter("--check-prompts needs prompts: give --examples")
    about = About(source=source, licence=licence, description=description, examples=prompts)
    _keep(store, name, deltas, form, about, checkpoint, check=check_prompts)


@app.command("list")
def list_(library: Root = LIBRARY, as_json: AsJson = False) -> None:
    """All experts of the library, those that slots cannot serve too."""
    from adapters.library import Library
    from adapters.manifest import to_json

    opened = Library.open(library)
    if as_json:
        typer.echo(to_json({"base": opened.base_digest, "experts": opened.entries}))
        return
    table = Table("expert", "version", "form", "rank", "size", "from", "examples", "licence")
    for name, m in opened.entries.items():
        row = (str(m.version), m.form, _span(m.report.ranks.values()), _size(m.report.bytes_after), m.source.kind)
        table.add_row(name, *row, str(len(m.examples)), _plain(m.licence or ""))
    console.print(table)


@app.command()
def show(name: Name, library: Root = LIBRARY, as_json: AsJson = False) -> None:
    """What is known of one expert."""
    from adapters.library import Library
    from adapters.manifest import to_json

    manifest = Library.open(library).manifest(name)
    if as_json:
        typer.echo(to_json(manifest))
        return
    for key in ("digest", "base", "created", "licence", "description", "scores", "source"):
        value = getattr(manifest, key)
        text = _plain(value) if isinstance(value, str) else " ".join(to_json(value).split())
        console.print(f"{key:<12}{text}", soft_wrap=True)
    console.print(f"{'examples':<12}{len(manifest.examples)}")
    _print_report(manifest)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Experts, all if none is given.")] = None,
    library: Root = LIBRARY,
    as_json: AsJson = False,
) -> None:
    """Read all weights of all versions again: are they what was added? Ends with status 2 if some are not."""
    from adapters.errors import AdapterError
    from adapters.library import Library
    from adapters.manifest import to_json

    opened, found = Library.open(library), dict[str, str]()
    for name in names or opened.all_names:
        try:
            with console.status(f"Reading {name} ..."):
                opened.verify(name)
            found[name] = "ok"
        except AdapterError as error:
            found[name] = str(error)
    if as_json:
        typer.echo(to_json(found))
    else:
        table = Table("expert", "weights")
        for row in found.items():
            table.add_row(*row)
        console.print(table)
    if set(found.values()) != {"ok"}:
        raise typer.Exit(2)


@app.command()
def remove(
    name: Name,
    library: Root = LIBRARY,
    purge: Annotated[bool, typer.Option("--purge", help="Delete the files of its versions too.")] = False,
) -> None:
    """Take an expert out of the library; its versions stay on the disk."""
    from adapters.store import Store

    Store(library).remove(name, purge=purge)
    console.print(f"{name} is removed{' and its files are deleted' if purge else ''}")


@app.command()
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="Where to write; it must not be there.")],
    as_: Annotated[Literal["peft", "checkpoint"], typer.Option("--as", help="The expert alone, or merged into the base.")],
    library: Root = LIBRARY,
    base: BaseFolder = None,
) -> None:
    """Write an expert as a PEFT folder, or merged into the base as a checkpoint that transformers loads."""
    from adapters.export import to_checkpoint, to_peft
    from adapters.library import Library
    from adapters.store import Store

    opened = Library.open(library)
    with console.status(f"Writing {folder} ..."):
        if as_ == "peft":
            to_peft(opened, name, folder)
        else:
            to_checkpoint(Store(library).checkpoint(base), [(1.0, opened.deltas(name))], folder)
    console.print(f"{name} is in {folder}")


@app.command()
def compress(
    name: Name,
    library: Root = LIBRARY,
    rank: Rank = None,
    energy: Energy = None,
    as_: Annotated[str | None, typer.Option("--as", help="A new name; else it is a new version of the expert.")] = None,
) -> None:
    """Make the best factors of a lower rank of an expert of any form."""
    from adapters.library import Library
    from adapters.manifest import About, Source
    from adapters.store import Store

    if rank is None and energy is None:
        raise typer.BadParameter("give --rank or --energy")
    opened = Library.open(library)
    deltas, known = opened.deltas(name), opened.manifest(name)
    options = {key: value for key, value in (("rank", rank), ("energy", energy)) if value is not None}
    about = About(
        source=Source("compress", options=options, parents={name: known.digest}),
        licence=known.licence,
        description=known.description,
        examples=known.examples,
    )
    _keep(Store(library), as_ or name, deltas, _form(rank, energy), about)


@app.command()
def merge(  # noqa: PLR0913 - one option each
    method: Annotated[str, typer.Option(help="As `tta experts methods` lists them.")],
    experts: Names,
    name: NewName,
    library: Root = LIBRARY,
    weights: Annotated[str | None, typer.Option(help="A number for each expert, with commas between.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="The method's, such as density=0.2; once for each.")] = None,
    seed: Annotated[int, typer.Option(help="Of methods that draw at random.")] = 0,
    base: BaseFolder = None,
    rank: Rank = None,
    energy: Energy = None,
    dense: Dense = False,
    licence: Licence = None,
    description: Description = None,
    examples: Examples = None,
) -> None:
    """Merge experts into a new one; without --rank, --energy and --dense its exact factors are kept, where it has such."""
    from adapters.library import Library
    from adapters.manifest import About, Source
    from adapters.merge.driver import merged
    from adapters.merge.table import METHODS
    from adapters.store import Store

    form, store, opened, names = _form(rank, energy, dense=dense), Store(library), Library.open(library), _split(experts)
    needs = METHODS[method].needs if method in METHODS else frozenset()
    with console.status("Reading the base ..."):
        checkpoint = store.checkpoint(base) if base is not None or needs - {"generator"} else None
    deltas = {n: opened.deltas(n) for n in names}
    given: dict[str, Any] = {}
    if checkpoint is not None and needs & {"grams", "fishers"}:
        from tta_serve.offline import calibration

        with console.status("Running each expert over its example prompts ..."):
            given = dict(calibration(checkpoint, needs, deltas, {n: opened.examples(n) for n in names}))
    options_ = _options(option or [])
    result = merged(method, [*deltas.values()], _numbers(weights), options_, base=checkpoint, seed=seed, **given)
    options = {**result.options, "seed": seed, **({"weights": weights} if weights else {})}
    source = Source("merge", method=method, options=options, parents={n: opened.manifest(n).digest for n in names})
    about = About(source=source, licence=licence, description=description, examples=_prompts(examples))
    _keep(store, name, result, form, about, checkpoint)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """The methods of `merge`, with their options and sources."""
    from adapters.manifest import to_json
    from adapters.merge.table import METHODS, NOT_IMPLEMENTED

    if as_json:
        rows = {
            name: {
                "source": row.source,
                "needs": sorted(row.needs),
                "at_least": row.at_least,
                "at_most": row.at_most,
                "options": {o.name: {"default": o.default, "wanted": o.wanted} for o in row.options.values()},
            }
            for name, row in METHODS.items()
        }
        typer.echo(to_json({"methods": rows, "not_implemented": NOT_IMPLEMENTED}))
        return
    table = Table("method", "options", "needs", "source")
    for name, row in METHODS.items():
        options = (f"{o.name}={o.wanted if o.default is None else o.default}" for o in row.options.values())
        table.add_row(name, "\n".join(options), ", ".join(sorted(row.needs & {"base", "grams", "fishers"})), row.source)
    for name, reason in NOT_IMPLEMENTED.items():
        table.add_row(name, "", "", f"not implemented: {reason}")
    console.print(table)


@app.command()
def diff(
    a: Name,
    b: Name,
    library: Root = LIBRARY,
    picture: Annotated[Path | None, typer.Option(help="A PNG to write: layers by module types.")] = None,
) -> None:
    """How much two experts get in each other's way: means over the weights of each type of module."""
    from adapters.errors import ExpertError
    from adapters.interference import compare
    from adapters.library import Library

    opened = Library.open(library)
    with console.status(f"Comparing {a} and {b} ..."):
        rows = compare(opened.deltas(a), opened.deltas(b))
    if not rows:
        raise ExpertError(f"{a!r} and {b!r} touch no weight in common: they cannot get in each other's way")
    _print_diff(rows)
    if picture:
        from tta_serve.pictures import picture as draw

        draw(rows, picture)
        console.print(f"The picture is {picture}")


@app.command()
def twin(
    experts: Names,
    rank: Annotated[int, typer.Option(help="Of the shared expert and of each exclusive one.", min=1)],
    prefix: Annotated[str, typer.Option(help="The new experts are PREFIX-shared, and PREFIX-NAME for each.")],
    library: Root = LIBRARY,
    shared_weight: Annotated[float, typer.Option(help="How much of the sum of all experts is shared.")] = 0.3,
) -> None:
    """Twin-Merging: what experts share as one expert, and what each knows beyond it as another."""
    from adapters.library import Library
    from adapters.manifest import About, Source
    from adapters.store import Store, check_name
    from adapters.twin import build

    opened, names = Library.open(library), _split(experts)
    for part in ("shared", *names):
        check_name(library, f"{prefix}-{part}")
    shared, exclusive = build({name: opened.deltas(name) for name in names}, shared_weight)
    known = {name: opened.manifest(name) for name in names}
    parents = {name: manifest.digest for name, manifest in known.items()}
    source = Source("twin", method="task_arithmetic", options={"shared_weight": shared_weight, "rank": rank}, parents=parents)
    _keep(Store(library), f"{prefix}-shared", shared, _form(rank), About(source=source))
    for name, deltas in exclusive.items():
        own = known[name]
        about = About(source=source, licence=own.licence, description=own.description, examples=own.examples)
        _keep(Store(library), f"{prefix}-{name}", deltas, _form(rank), about)


def _keep(  # noqa: PLR0913 - those of Store.add
    store: Store, name: str, deltas: Deltas, form: Form, about: About, base: Checkpoint | None = None, *, check: bool = False
) -> None:
    """Add an expert, and print what became of it. Every command that makes one ends here."""
    score = _score(store, deltas, form, about, base, check=check)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        progress.update(task, total=len(deltas.shapes))
        watched = _Watched(deltas, lambda count: progress.update(task, completed=count))
        manifest = store.add(name, watched, form, about, base, score)
    _print_report(manifest)


def _score(  # noqa: PLR0913 - those of _keep
    store: Store, deltas: Deltas, form: Form, about: About, base: Checkpoint | None, *, check: bool
) -> Callable[[Deltas], Mapping[str, float]]:
    """What measures, on the example prompts, how far a form that loses something moves the next tokens' log-probabilities.

    Then, of factors for a given base, what they lose below the layer that routes; log-probabilities only if `check`.
    """
    from adapters.forms import DenseForm, LowRankForm
    from tta_serve.offline import change
    from tta_serve.upper import lost, routing_layer

    exact = form in (LowRankForm(), DenseForm())
    model = cache(lambda: _model(store, base))

    def score(written: Deltas) -> dict[str, float]:
        offline = model() if about.examples and not exact else None
        found = change(offline, deltas, written, about.examples) if offline else {}
        if base is not None and isinstance(form, LowRankForm):
            layer = routing_layer(base)
            below = lost(written, layer, about.examples if check else (), model)
            found |= {"upper_layer": layer, **{f"upper_{name}": value for name, value in below.items()}}
        return found

    return score


def _model(store: Store, base: Checkpoint | None) -> Offline | None:
    """The base's model, None where it is not known or, which is said, not to be had."""
    from adapters.errors import ExpertError
    from tta_serve.offline import Offline

    if base is None and store.base is None:
        return None
    try:
        return Offline.load(base or store.checkpoint())
    except ExpertError as error:
        console.print(f"Log-probabilities are not compared: {error}", soft_wrap=True)
        return None


class _Watched:
    """Deltas that tell how many of their weights have been asked for."""

    def __init__(self, deltas: Deltas, tell: Callable[[int], None]) -> None:
        self._deltas, self._tell, self._seen = deltas, tell, set[str]()

    def delta(self, weight: str) -> Tensor:
        self._see(weight)
        return self._deltas.delta(weight)

    def factors(self, weight: str) -> LowRank | None:
        self._see(weight)
        return self._deltas.factors(weight)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._deltas, name)

    def _see(self, weight: str) -> None:
        self._seen.add(weight)
        self._tell(len(self._seen))


def _print_report(manifest: Manifest) -> None:
    from adapters.forms import type_of

    report, dropped = manifest.report, defaultdict[str, list[float]](list)
    for weight, energy in report.dropped.items():
        dropped[type_of(weight)].append(energy)
    sizes = f"{_size(report.bytes_before)} -> {_size(report.bytes_after)}"
    ranks = f", rank {_span(report.ranks.values())}" if report.ranks else ""
    console.print(f"{manifest.name}, version {manifest.version}: {manifest.form}{ranks}, {sizes}")
    if report.kept:
        table = Table("type of module", "energy kept", "dropped: weights", "dropped: energy")
        for kind, kept in report.kept.items():
            lost = dropped[kind]
            table.add_row(kind, f"{kept:.4f}", *((str(len(lost)), f"{sum(lost):.3g}") if lost else ("", "")))
        console.print(table)
    for score, value in manifest.scores.items():
        console.print(f"{score:<28}{value:.4g}")


def _print_diff(rows: Sequence[Row]) -> None:
    from adapters.forms import type_of

    titles = {
        "cosine": "cosine",
        "conflict": "signs differ",
        "conflict_mass": "by size",
        "overlap_in": "inputs",
        "overlap_out": "outputs",
        "norm_a": "|a|",
        "norm_b": "|b|",
    }
    groups = defaultdict[str, list["Row"]](list)
    for row in rows:
        groups[type_of(row.weight)].append(row)
    table = Table(
        "type", "", *titles.values(), title="Share of entries whose signs differ; overlap of what they read and write"
    )
    for kind, group in [*groups.items(), ("all", list(rows))]:
        values = ([v for row in group if (v := getattr(row, column)) is not None] for column in titles)
        table.add_row(kind, str(len(group)), *(f"{mean(v):.3g}" if v else "" for v in values))
    console.print(table)


def _form(rank: int | None = None, energy: float | None = None, *, one_bit: bool = False, dense: bool = False) -> Form:
    from adapters.forms import DenseForm, LowRankForm, OneBitForm

    if (rank is not None or energy is not None) + one_bit + dense > 1:
        raise typer.BadParameter("--rank or --energy, --one-bit and --dense are different forms: give one")
    if one_bit or dense:
        return OneBitForm() if one_bit else DenseForm()
    return LowRankForm(rank, energy)


def _prompts(file: Path | None) -> tuple[str, ...]:
    from adapters.library import read_examples

    return tuple(read_examples(file)) if file else ()


def _split(names: str) -> list[str]:
    found = [name.strip() for name in names.split(",")]
    if len(set(found)) < len(found):
        raise typer.BadParameter(f"an expert is named twice: {names}")
    return found


def _numbers(weights: str | None) -> list[float] | None:
    try:
        return [float(w) for w in weights.split(",")] if weights is not None else None
    except ValueError:
        raise typer.BadParameter(f"--weights are numbers with commas between, got {weights!r}") from None


def _options(given: Sequence[str]) -> Mapping[str, str]:
    if wrong := [item for item in given if "=" not in item]:
        raise typer.BadParameter(f"--option is NAME=VALUE, got {wrong[0]!r}")
    return dict(item.split("=", 1) for item in given)


def _span(ranks: Any) -> str:
    low, high = min(ranks, default=0), max(ranks, default=0)
    return (str(low) if low == high else f"{low} to {high}") if high else ""


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _plain(text: str) -> str:
    return text if text.isprintable() else repr(text)
