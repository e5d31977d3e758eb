"""`tta router learn` and `tta router pareto`: entries made by measuring merges on a few prompts of each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from tta_serve.experts_cli import LIBRARY, BaseFolder, Root, console

if TYPE_CHECKING:
    from adapters.entries import Entry
    from adapters.expert import Expert
    from adapters.library import Library
    from adapters.mix import MixRules
    from router.pareto import Front
    from tta_serve.mixed import Mixed, Sample
    from tta_serve.offline import Offline

Experts = Annotated[str | None, typer.Option("--experts", help="Names with commas between; all if left out.")]
PerExpert = Annotated[int, typer.Option("--prompts", min=1, help="Example prompts of each expert that are used.")]
AnswerTokens = Annotated[int, typer.Option("--answer", min=1, help="Tokens, at most, of an expert's own answer to a prompt.")]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what has the name.")]


def learn(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The new entry's name.")],
    library: Root = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    loss: Annotated[Literal["alignment", "entropy"], typer.Option(help="Expert Merging's or AdaMerging's.")] = "alignment",
    prompts: PerExpert = 5,
    answer: AnswerTokens = 32,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 60,
    rate: Annotated[float, typer.Option(min=0, help="Adam's learning rate.")] = 0.03,
    granularity: Annotated[Literal["layer", "expert"], typer.Option(help="A coefficient for each layer, or one.")] = "layer",
    replace: Replace = False,
) -> None:
    """Learn an entry: coefficients with which the base answers every expert's prompts as that expert does, without labels."""
    from adapters.entries import ENTRIES, Entry, write_entry
    from adapters.writing import check_free
    from tta_serve.learn import Settings
    from tta_serve.learn import learn as optimise

    check_free(library / ENTRIES / f"{name}.json", replace=replace)
    work = _begin(library, base, experts, prompts, answer, name)
    settings = Settings(loss, steps, rate, per_layer=granularity == "layer")
    with bar(f"Learning {name}", steps) as tell:
        learned = optimise(work.mixed, work.samples, work.rules, settings, lambda _: tell())
    source = {"method": "learned", **asdict(settings), "initial": settings.start, "prompts": prompts, "answer": answer}
    source |= {"loss_before": learned.before, "loss_after": learned.after}
    digests = {e.name: e.digest for e in work.mixed.experts if e.name in learned.coefficients}
    entry = Entry(name, learned.coefficients, digests, source)
    write_entry(library / ENTRIES, entry, replace=replace)
    _print_entry(entry, f"{name}: loss {learned.before:.4g} -> {learned.after:.4g}")


def pareto(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The front's name; its entries are NAME-01 and on.")],
    library: Root = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Random merges to measure.", show_default="by experts")] = None,
    points: Annotated[int, typer.Option(min=1, help="Of the front, at most.")] = 12,
    prompts: PerExpert = 4,
    answer: AnswerTokens = 32,
    seed: Seed = 0,
    picture: Annotated[Path | None, typer.Option(help="A PNG to write.")] = None,
    replace: Replace = False,
) -> None:
    """Make a front: entries of which each is the best for another preference among the experts' tasks."""
    from tta_serve.fronts import Size, check_front, make_front, store_front

    size = Size(samples, points)
    check_front(library, name, size, replace=replace)
    work = _begin(library, base, experts, prompts, answer, name)
    with bar(f"Measuring merges for {name}", size.measurements(len(work.samples))) as tell:
        front = make_front(name, work.mixed, work.samples, work.rules, size, seed, tell)
    store_front(library, name, front, replace=replace)
    _print_front(front)
    if picture:
        from tta_serve.pictures import front_picture

        front_picture(front, picture)
        console.print(f"The picture is {picture}")


def gates(  # noqa: PLR0913 - one option each
    library: Root = LIBRARY,
    base: BaseFolder = None,
    prompts: PerExpert = 16,
    answer: AnswerTokens = 40,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 60,
    rate: Annotated[float, typer.Option(min=0, help="Adam's learning rate.")] = 0.1,
    replace: Replace = False,
) -> None:
    """Train in-layer gates, for policies of type gated with score trained: which expert a token uses in each weight."""
    from adapters.layer_gates import LAYER_GATES, write_gates
    from adapters.library import Library
    from adapters.writing import check_free
    from tta_serve.train_gates import Settings, train

    file = library / LAYER_GATES
    check_free(file, replace=replace)
    work = _sampled(Library.open(library), library, base, None, prompts, answer, canonical=True)
    with bar("Training gates", steps) as tell:
        trained = train(work.mixed, work.experts, work.samples, Settings(steps, rate), lambda _: tell())
    write_gates(file, trained.gates, replace=replace)
    console.print(f"-log p of a token of the experts' answers: {trained.before:.4g} -> {trained.after:.4g}")
    console.print(f"The gates are {file}", soft_wrap=True)


def offline(root: Path, base: Path | None) -> Offline:
    """The library's base in transformers."""
    from adapters.store import Store
    from tta_serve.offline import Offline

    with console.status("Reading the base ..."):
        return Offline.load(Store(root).checkpoint(base))


@dataclass(frozen=True)
class _Work:
    """samples: of each expert's prompts with its own answers   experts: as the library has them"""

    mixed: Mixed
    samples: list[list[Sample]]
    experts: list[Expert]

    @property
    def rules(self) -> MixRules:
        """Of coefficients of these experts."""
        from adapters.mix import MixRules

        return MixRules(frozenset(expert.name for expert in self.experts), self.mixed.layers)


def _begin(  # noqa: PLR0913 - options of the commands
    root: Path, base: Path | None, chosen: str | None, prompts: int, answer: int, new: str
) -> _Work:
    """Read the base and the experts, and let each answer its prompts. new: the name of what will be made"""
    from adapters.errors import LibraryError
    from adapters.library import Library
    from adapters.store import check_name

    opened = Library.open(root)
    check_name(root, new)
    if new in opened.all_names:
        raise LibraryError(f"{new!r} is an expert: an entry needs another name")
    return _sampled(opened, root, base, chosen, prompts, answer)


def _sampled(  # noqa: PLR0913 - options of the commands
    opened: Library, root: Path, base: Path | None, chosen: str | None, prompts: int, answer: int, *, canonical: bool = False
) -> _Work:
    """Let each expert answer its prompts. canonical: whether the model is made with the canonical forms of their factors"""
    from adapters.canonical import canonical_expert
    from adapters.errors import LibraryError
    from tta_serve.mixed import Mixed

    names = _chosen(opened, chosen)
    asked = {name: opened.examples(name)[:prompts] for name in names}
    if silent := [name for name, own in asked.items() if not own]:
        raise LibraryError(f"{', '.join(silent)}: without example prompts; add the expert again with --examples")
    experts = [opened.expert(name) for name in names]
    mixed = Mixed(offline(root, base), [canonical_expert(e) if canonical else e for e in experts])
    samples: list[list[Sample]] = [[] for _ in names]
    with bar("Asking the experts", sum(map(len, asked.values()))) as tell:
        for k, own in enumerate(asked.values()):
            for prompt in own:
                samples[k].append(mixed.sample(k, prompt, answer))
                tell()
    return _Work(mixed, samples, experts)


def _chosen(library: Library, names: str | None) -> list[str]:
    """The experts named, in the library's order. Raises typer.BadParameter for an unknown one."""
    wanted = set(library.names) if names is None else {name.strip() for name in names.split(",")}
    if unknown := sorted(wanted - set(library.names)):
        raise typer.BadParameter(f"--experts: {', '.join(unknown)}; the library serves {', '.join(library.names)}")
    return [name for name in library.names if name in wanted]


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar, and what moves it on by one."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _print_entry(entry: Entry, title: str) -> None:
    from adapters.coefficient import numbers

    table = Table("expert", "least", "mean", "most", title=title)
    for name, coefficient in entry.coefficients.items():
        values = numbers(coefficient)
        table.add_row(name, *(f"{value:.2f}" for value in (min(values), sum(values) / len(values), max(values))))
    console.print(table)


def _print_front(front: Front) -> None:
    table = Table("entry", "made for", *front.tasks, title="KL to each expert on its own prompts, nats")
    for point in front.points:
        wanted = ", ".join(f"{task} {share:.2f}" for task, share in point.preference.items() if share)
        table.add_row(point.entry, wanted, *(f"{-point.measured[task]:.3f}" for task in front.tasks))
    table.add_section()
    table.add_row("R2 of the surrogate", "", *(f"{front.r2[task]:.2f}" for task in front.tasks))
    console.print(table)
