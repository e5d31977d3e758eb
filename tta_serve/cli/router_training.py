"""What a few prompts of each expert teach, or a few with wanted answers.

These are `tta router learn`, `cocktail`, `pareto`, `recombine`, `gates` and `choose-activation`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from tta_serve.cli.router_sampling import (
    Experts,
    ReferencedExperts,
    Replace,
    read_references,
    sample_experts,
    sample_for,
)

if TYPE_CHECKING:
    from tta_serve.offline.learn_entry import LearnedEntry

PerExpert = Annotated[
    int, typer.Option("--prompts", min=1, help="Example prompts of each expert that are used.")
]
AnswerTokens = Annotated[
    int,
    typer.Option("--answer", min=1, help="Tokens, at most, of an expert's own answer to a prompt."),
]
EXAMPLES_HELP = (
    'JSON lines {"prompt": ..., "want": the wanted answer}, with "task" where they are of several.'
)
Examples = Annotated[
    Path | None,
    typer.Option(help=f"{EXAMPLES_HELP} For --loss references.", show_default="experts' own"),
]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]


def learn(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The new entry's name.")],
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    loss: Annotated[
        Literal["alignment", "entropy", "references"],
        typer.Option(help="Expert Merging's or AdaMerging's; or CAT's, of wanted answers."),
    ] = "alignment",
    prompts: PerExpert = 5,
    answer: AnswerTokens = 32,
    examples: Examples = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 60,
    rate: Annotated[float, typer.Option(min=0, help="Adam's learning rate.")] = 0.03,
    granularity: Annotated[
        Literal["layer", "expert"], typer.Option(help="A coefficient for each layer, or one.")
    ] = "layer",
    replace: Replace = False,
) -> None:
    """Learn an entry: coefficients with which the base answers as every expert would.

    It is measured on the experts' own answers to their prompts, without labels; or with --loss
    references on the answers that --examples wants, by shares of the experts that sum to 1.
    """
    from adapters.files.atomic import check_free
    from adapters.library.entries import ENTRIES, Entry, write_entry
    from tta_serve.cli.router_output import print_entry
    from tta_serve.offline.learn_entry import LearnSettings
    from tta_serve.offline.learn_entry import learn as optimise

    if (examples is not None) != (loss == "references"):
        raise typer.BadParameter("--loss references and --examples FILE go together: give both")
    check_free(library / ENTRIES / f"{name}.json", replace=replace)
    per_layer = granularity == "layer"
    if loss == "references":
        assert examples is not None
        wanted = read_references(library, base, experts, examples, name)
        mixed = wanted.mixed
        learned, source = _learn_shares(name, wanted, steps, rate, per_layer=per_layer)
    else:
        own = sample_for(library, base, experts, prompts, answer, name)
        mixed, settings = own.mixed, LearnSettings(loss, steps, rate, per_layer=per_layer)
        with show_progress(f"Learning {name}", steps) as tell:
            learned = optimise(mixed, own.samples, mixed.rules, settings, lambda _: tell())
        source = {**asdict(settings), "initial": settings.start}
        source |= {"prompts": prompts, "answer": answer}
    source |= {"method": "learned", "loss_before": learned.before, "loss_after": learned.after}
    digests = {e.name: e.digest for e in mixed.experts if e.name in learned.coefficients}
    entry = Entry(name, learned.coefficients, digests, source)
    write_entry(library / ENTRIES, entry, replace=replace)
    print_entry(entry, f"{name}: loss {learned.before:.4g} -> {learned.after:.4g}")


def _learn_shares(
    name: str, wanted: ReferencedExperts, steps: int, rate: float, *, per_layer: bool
) -> tuple[LearnedEntry, dict[str, Any]]:
    """Learn shares of the experts on wanted answers, and return how too."""
    from tta_serve.offline.learn_shares import ShareSettings, learn_shares

    settings = ShareSettings(steps, rate, per_layer)
    with show_progress(f"Learning {name}", steps) as tell:
        learned = learn_shares(
            wanted.mixed, wanted.groups, wanted.mixed.rules, settings, lambda _: tell()
        )
    source = {"loss": "references", **asdict(settings), "examples": len(wanted.prompts)}
    return learned, source


def cocktail(  # noqa: PLR0913 - one option each
    name: Annotated[str, typer.Option(help="The new entry's name.")],
    examples: Annotated[Path, typer.Option(help=EXAMPLES_HELP)],
    library: LibraryFolder = LIBRARY,
    base: BaseFolder = None,
    experts: Experts = None,
    tau: Annotated[
        float, typer.Option(help="The temperature: the higher, the more equal the weights are.")
    ] = 5.0,
    replace: Replace = False,
) -> None:
    """Make an entry of experts weighed by what they lose on a few wanted answers: LM-Cocktail.

    Weights are softmax(-loss / tau) over the base and the experts.
    """
    from adapters.files.atomic import check_free
    from adapters.library.entries import ENTRIES, Entry, write_entry
    from tta_serve.cli.router_output import print_cocktail
    from tta_serve.offline.cocktail import make_cocktail

    if tau <= 0:
        raise typer.BadParameter(f"--tau must be above 0, got {tau:g}")
    check_free(library / ENTRIES / f"{name}.json", replace=replace)
    work = read_references(library, base, experts, examples, name)
    total = len(work.prompts) * (1 + len(work.mixed.experts))
    with show_progress("Measuring what models lose", total) as tell:
        made = make_cocktail(work.mixed, work.prompts, work.mixed.rules, tau, tell)
    digests = {e.name: e.digest for e in work.mixed.experts if e.name in made.coefficients}
    source: dict[str, str | int | float] = {
        "method": "cocktail",
        "tau": tau,
        "examples": len(work.prompts),
    }
    source |= {f"loss_{model}": loss for model, loss in made.losses.items()}
    source |= {f"weight_{model}": weight for model, weight in made.weights.items()}
    write_entry(library / ENTRIES, Entry(name, made.coefficients, digests, source), replace=replace)
    print_cocktail(name, made)


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
    work = sample_for(library, base, experts, prompts, answer, name)
    with show_progress(
        f"Measuring merges for {name}", size.count_measurements(len(work.samples))
    ) as tell:
        front = make_front(name, work.mixed, work.samples, work.mixed.rules, size, seed, tell)
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
    work = sample_for(library, base, experts, prompts, answer, name)
    total = count_measurements(settings, len(work.samples))
    with show_progress(f"Measuring merges for {name}", total) as tell:
        found = search(name, work.mixed, work.samples, work.mixed.rules, settings, seed, tell)
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
    work = sample_experts(
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
    work = sample_experts(opened, library, base, experts, prompts, answer)
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
