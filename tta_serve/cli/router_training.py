"""What a few prompts of each expert teach.

These are `tta router learn`, `pareto`, `recombine`, `gates` and `choose-activation`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tta_serve.cli.options import (
    LIBRARY,
    BaseFolder,
    LibraryFolder,
    Picture,
    console,
    open_usable,
    print_table,
    show_progress,
)

if TYPE_CHECKING:
    from adapters.expert import Expert
    from adapters.library.library import Library
    from adapters.mix import MixRules
    from tta_serve.offline.base_model import PlainModel
    from tta_serve.offline.mixed_model import MixedModel, Sample

Experts = Annotated[
    str | None, typer.Option("--experts", help="Names with commas between; all if left out.")
]
PerExpert = Annotated[
    int, typer.Option("--prompts", min=1, help="Example prompts of each expert that are used.")
]
AnswerTokens = Annotated[
    int,
    typer.Option("--answer", min=1, help="Tokens, at most, of an expert's own answer to a prompt."),
]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what has the name.")]


def learn(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The new entry's name.")],
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    loss: Annotated[
        Literal["alignment", "entropy"], typer.Option(help="Expert Merging's or AdaMerging's.")
    ] = "alignment",
    prompts: PerExpert = 5,
    answer: AnswerTokens = 32,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 60,
    rate: Annotated[float, typer.Option(min=0, help="Adam's learning rate.")] = 0.03,
    granularity: Annotated[
        Literal["layer", "expert"], typer.Option(help="A coefficient for each layer, or one.")
    ] = "layer",
    replace: Replace = False,
) -> None:
    """Learn an entry: coefficients with which the base answers as every expert would.

    It is measured on the experts' own answers to their prompts, without labels.
    """
    from adapters.files.atomic import check_free
    from adapters.library.entries import ENTRIES, Entry, write_entry
    from tta_serve.cli.router_output import print_entry
    from tta_serve.offline.learn_entry import LearnSettings
    from tta_serve.offline.learn_entry import learn as optimise

    check_free(library / ENTRIES / f"{name}.json", replace=replace)
    work = _sample_for(library, base, experts, prompts, answer, name)
    settings = LearnSettings(loss, steps, rate, per_layer=granularity == "layer")
    with show_progress(f"Learning {name}", steps) as tell:
        learned = optimise(work.mixed, work.samples, work.rules, settings, lambda _: tell())
    source = {
        "method": "learned",
        **asdict(settings),
        "initial": settings.start,
        "prompts": prompts,
        "answer": answer,
    }
    source |= {"loss_before": learned.before, "loss_after": learned.after}
    digests = {e.name: e.digest for e in work.mixed.experts if e.name in learned.coefficients}
    entry = Entry(name, learned.coefficients, digests, source)
    write_entry(library / ENTRIES, entry, replace=replace)
    print_entry(entry, f"{name}: loss {learned.before:.4g} -> {learned.after:.4g}")


def pareto(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The front's name; its entries are NAME-01 and on.")],
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Random merges to measure.", show_default="by experts")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Of the front, at most.")] = 12,
    prompts: PerExpert = 4,
    answer: AnswerTokens = 32,
    seed: Seed = 0,
    picture: Picture = None,
    replace: Replace = False,
) -> None:
    """Make a front: entries that are each the best for another preference among tasks."""
    from tta_serve.cli.router_output import print_front
    from tta_serve.offline.pareto_front import FrontSize, check_front, make_front, store_front

    size = FrontSize(samples, points)
    check_front(library, name, size, replace=replace)
    work = _sample_for(library, base, experts, prompts, answer, name)
    with show_progress(
        f"Measuring merges for {name}", size.count_measurements(len(work.samples))
    ) as tell:
        front = make_front(name, work.mixed, work.samples, work.rules, size, seed, tell)
    store_front(library, name, front, replace=replace)
    print_front(front)
    if picture:
        from tta_serve.reporting.plots import draw_front

        draw_front(front, picture)
        console.print(f"The picture is {picture}")


def recombine(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The set's name; its entries are NAME-01 and on.")],
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    thirds: Annotated[
        bool,
        typer.Option("--thirds", help="Other coefficients for each third of the depth."),
    ] = False,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Random merges to measure.", show_default="by experts")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Searches, each measured before the next.")
    ] = 2,
    entries: Annotated[int, typer.Option(min=1, max=99, help="Of the set, at most.")] = 8,
    most: Annotated[int, typer.Option(min=1, help="Experts in an entry, at most.")] = 3,
    price: Annotated[
        float, typer.Option(min=0, help="Nats that each expert of an entry must bring.")
    ] = 0.01,
    prompts: PerExpert = 4,
    answer: AnswerTokens = 32,
    seed: Seed = 0,
    replace: Replace = False,
) -> None:
    """Search a few reusable entries of experts' attention and MLP components.

    Requests choose among them by policies of type recombined.
    """
    from tta_serve.cli.router_output import print_entry_set
    from tta_serve.offline.recombine import (
        RecombineSettings,
        check_entries,
        count_measurements,
        store_entries,
    )
    from tta_serve.offline.recombine import recombine as search

    settings = RecombineSettings(thirds, samples, rounds, entries, most, price)
    check_entries(library, name, settings, replace=replace)
    work = _sample_for(library, base, experts, prompts, answer, name)
    total = count_measurements(settings, len(work.samples))
    with show_progress(f"Measuring merges for {name}", total) as tell:
        found = search(name, work.mixed, work.samples, work.rules, settings, seed, tell)
    store_entries(library, name, found, replace=replace)
    print_entry_set(found)


def gates(  # noqa: PLR0913 - one option each
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    prompts: PerExpert = 16,
    answer: AnswerTokens = 40,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 60,
    rate: Annotated[float, typer.Option(min=0, help="Adam's learning rate.")] = 0.1,
    replace: Replace = False,
) -> None:
    """Train in-layer gates: which expert a token uses in each weight.

    They are for policies of type gated with score trained.
    """
    from adapters.bank.layer_gates import LAYER_GATES, write_gates
    from adapters.files.atomic import check_free
    from tta_serve.offline.train_layer_gates import LayerGateSettings, train

    file = library / LAYER_GATES
    check_free(file, replace=replace)
    work = _sample_experts(
        open_usable(library), library, base, None, prompts, answer, canonical=True
    )
    with show_progress("Training gates", steps) as tell:
        trained = train(
            work.mixed, work.experts, work.samples, LayerGateSettings(steps, rate), lambda _: tell()
        )
    write_gates(file, trained.gates, replace=replace)
    console.print(
        f"-log p of a token of the experts' answers: {trained.before:.4g} -> {trained.after:.4g}"
    )
    console.print(f"The gates are {file}")


def choose_activation(
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    prompts: PerExpert = 16,
    answer: AnswerTokens = 40,
) -> None:
    """From which point of a prompt on should each expert act? The last line is JSON.

    It is measured on the experts' own answers to their prompts, without labels.
    """
    from tta_serve.offline.choose_activation import (
        choose_activation,
        make_table,
        measure_activation,
    )

    opened = open_usable(library)
    work = _sample_experts(opened, library, base, experts, prompts, answer)
    losses = {}
    with show_progress("Measuring what experts lose", sum(map(len, work.samples))) as tell:
        for k, expert in enumerate(work.experts):
            asked = list(zip(opened.examples(expert.name), work.samples[k], strict=False))
            losses[expert.name] = measure_activation(work.mixed, k, asked, tell)
    print_table(make_table(losses))
    rows = {
        name: {
            **{point: asdict(loss) for point, loss in own.items()},
            "acts_from": choose_activation(own),
        }
        for name, own in losses.items()
    }
    typer.echo(json.dumps({"prompts": prompts, "experts": rows}))


def load_base(root: Path, base: Path | None) -> PlainModel:
    """Load the library's base in transformers."""
    from adapters.library.versions import VersionStore
    from tta_serve.offline.base_model import PlainModel

    with console.status("Reading the base ..."):
        return PlainModel.load(VersionStore(root).checkpoint(base))


@dataclass(frozen=True)
class _SampledExperts:
    """Experts, a model that mixes them, and what each answers to its own prompts."""

    mixed: MixedModel
    samples: list[list[Sample]]
    """By expert, its prompts with its own answers."""
    experts: list[Expert]
    """The experts as the library has them."""

    @property
    def rules(self) -> MixRules:
        """What coefficients of these experts may be."""
        from adapters.mix import MixRules

        return MixRules(frozenset(expert.name for expert in self.experts), self.mixed.layers)


def _sample_for(  # noqa: PLR0913 - options of the commands
    root: Path, base: Path | None, chosen: str | None, prompts: int, answer: int, new: str
) -> _SampledExperts:
    """Let each expert answer its prompts, once the new entry's name is known to be free.

    Args:
        root: The library's folder.
        base: The base's folder, if it is not where it was.
        chosen: The experts' names with commas between; all if None.
        prompts: How many of each expert's example prompts are used.
        answer: How many tokens an answer may have.
        new: The name of what will be made.

    Raises:
        LibraryError: The name cannot be used, or an expert has no prompts.
    """
    from adapters.errors import LibraryError
    from adapters.library.names import check_name

    opened = open_usable(root)
    check_name(root, new)
    if new in opened.names:
        raise LibraryError(f"{new!r} is an expert: an entry needs another name")
    return _sample_experts(opened, root, base, chosen, prompts, answer)


def _sample_experts(  # noqa: PLR0913 - options of the commands
    opened: Library,
    root: Path,
    base: Path | None,
    chosen: str | None,
    prompts: int,
    answer: int,
    *,
    canonical: bool = False,
) -> _SampledExperts:
    """Let each expert answer its prompts.

    Args:
        opened: The library, whose folder is `root`.
        root: The library's folder.
        base: The base's folder, if it is not where it was.
        chosen: The experts' names with commas between; all if None.
        prompts: How many of each expert's example prompts are used.
        answer: How many tokens an answer may have.
        canonical: Whether the model is made with the canonical forms of their factors.

    Raises:
        LibraryError: An expert has no prompts.
    """
    from adapters.errors import LibraryError
    from adapters.low_rank import make_canonical_expert
    from tta_serve.offline.mixed_model import MixedModel

    names = _choose_experts(opened, chosen)
    asked = {name: opened.examples(name)[:prompts] for name in names}
    if silent := [name for name, own in asked.items() if not own]:
        raise LibraryError(
            f"{', '.join(silent)}: without example prompts; add the expert again with --examples"
        )
    experts = [opened.expert(name) for name in names]
    mixed = MixedModel(
        load_base(root, base), [make_canonical_expert(e) if canonical else e for e in experts]
    )
    samples: list[list[Sample]] = [[] for _ in names]
    with show_progress("Asking the experts", sum(map(len, asked.values()))) as tell:
        for k, own in enumerate(asked.values()):
            for prompt in own:
                samples[k].append(mixed.make_sample(k, prompt, answer))
                tell()
    return _SampledExperts(mixed, samples, experts)


def _choose_experts(library: Library, names: str | None) -> list[str]:
    """Return the experts named, in the library's order.

    Raises:
        BadParameter: The library does not serve one of them.
    """
    known = library.low_rank_names
    whole = [name for name in known if name not in library.parts]
    wanted = set(whole) if names is None else {name.strip() for name in names.split(",")}
    if unknown := sorted(wanted - set(known)):
        raise typer.BadParameter(
            f"--experts: {', '.join(unknown)}; the low-rank experts are {', '.join(known)}"
        )
    if parts := sorted(wanted & library.parts.keys()):
        raise typer.BadParameter(
            f"--experts: {', '.join(parts)} answer nothing alone, as parts of Twin-Merging; there"
            f" are: {', '.join(whole) or 'no others'}"
        )
    return [name for name in known if name in wanted]
