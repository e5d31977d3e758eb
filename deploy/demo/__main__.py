"""The command `python -m deploy.demo`: base model, experts, scores, evaluation, experiment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from deploy.demo.base import BaseModelError, ensure_base
from deploy.demo.tasks import TASKS, Split
from tta_serve.cli import evaluate as cli

app = typer.Typer(help="The demo library: base model, experts, scores.", no_args_is_help=True)
console = Console()
_ROUTED = ("right", "everyday left to the base", "near misses left to it")

Names = Annotated[
    list[str] | None, typer.Argument(help=f"Experts, all if none is given: {', '.join(TASKS)}.")
]


def _chosen(names: list[str] | None) -> list[str]:
    """Return the names given, all of them if none; an unknown one is an error."""
    if unknown := set(names or ()) - set(TASKS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    return names or list(TASKS)


def _ready() -> str:
    """Return the base model's folder, or end with a plain message."""
    try:
        return str(ensure_base())
    except BaseModelError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from error


@app.command()
def base() -> None:
    """Make the base model if it is not there, and print its folder."""
    typer.echo(_ready())


@app.command()
def train(  # noqa: PLR0913 - one option each
    names: Names = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; by default what each task needs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data and of the first weights.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Train again experts that are there.")
    ] = False,
    further: Annotated[
        bool, typer.Option("--further", help="Go on from experts that are there; give a new seed.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Train whole weights of the base, not a LoRA.")
    ] = False,
    acts_from: Annotated[
        Literal["start", "user_turn", "answer"],
        typer.Option(help="Where in a prompt the LoRA acts; before that the base runs."),
    ] = "start",
    out: Annotated[
        Path | None, typer.Option(help="A folder for the experts.", show_default="the demo's own")
    ] = None,
) -> None:
    """Train experts, one after the other; an interrupted training goes on where it stopped."""
    if acts_from != "start" and (full or out is None):
        raise typer.BadParameter(
            "--acts-from wants an --out of its own, and a LoRA: the demo's experts act everywhere"
        )
    if further and (full or acts_from != "start"):
        raise typer.BadParameter("--further is for LoRAs that act from the start")
    chosen = _chosen(names) if names or not full else _list_finetunes()
    _ready()
    # Threads that spin for long are four times as slow on a shared machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    from deploy.demo.model import EXPERTS
    from deploy.demo.train import STEPS, TrainingSettings
    from deploy.demo.train import train as train_expert

    if full:
        _train_full(chosen, steps, seed, force=force)
        return
    library = out or EXPERTS
    for name in chosen:
        there = (library / name / "adapter_model.safetensors").exists()
        if further and not there:
            raise typer.BadParameter(f"{name} is not there: it is trained first without --further")
        if there and not (force or further):
            console.print(f"{name}: there already, --further or --force trains it again")
            continue
        settings = TrainingSettings(
            name, steps or STEPS[name], seed, acts_from=acts_from, further=further
        )
        train_expert(settings, console, library)


def _list_finetunes() -> list[str]:
    from deploy.demo.finetune import TRAINED

    return list(TRAINED)


def _train_full(names: list[str], steps: int | None, seed: int, *, force: bool) -> None:
    """Train full fine-tunes of these tasks, one after the other."""
    from deploy.demo.finetune import FINETUNES, PEAK, STEPS, train_finetune
    from deploy.demo.train import TrainingSettings

    _check_finetunes(names)
    for name in names:
        if (FINETUNES / f"{name}.xz").exists() and not force:
            console.print(f"{name}: there already, --force trains it again")
            continue
        train_finetune(TrainingSettings(name, steps or STEPS[name], seed, peak=PEAK), console)


def _check_finetunes(names: list[str]) -> None:
    known = _list_finetunes()
    if unknown := set(names) - set(known):
        raise typer.BadParameter(
            f"there is no full fine-tune of {', '.join(sorted(unknown))}; there are"
            f" {', '.join(known)}"
        )


@app.command()
def finetune(
    name: Annotated[str, typer.Argument(help="The task of the fine-tune.")],
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint is written.")],
) -> None:
    """Write a full fine-tune of the base as a checkpoint, for `tta experts add`."""
    _check_finetunes([name])
    _ready()
    from deploy.demo.finetune import write_finetune

    write_finetune(name, folder)
    console.print(f"tta experts add {folder} --name {name}-full --dense", soft_wrap=True)


@app.command()
def score(
    names: Names = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Test examples per task.")] = 100,
) -> None:
    """Score base and experts on the held-out test split, experts on strangers' prompts too.

    The scores go to experts/results.json.
    """
    chosen = _chosen(names)
    _ready()
    from deploy.demo.evaluate import evaluate_test

    title = f"Right answers to {n} held-out prompts, and to strangers"
    table = Table("expert", "base", "expert score", "to strangers", title=title)
    for name in chosen:
        with console.status(f"{name} ..."):
            scores = evaluate_test(name, n)
        table.add_row(name, *(f"{value:.2f}" for value in scores))
    console.print(table)


@app.command()
def forms(
    n: Annotated[int, typer.Option("--n", min=1, help="Test examples of each fine-tune.")] = 50,
) -> None:
    """Serve the full fine-tunes in every form, and score each. The last line is JSON."""
    _ready()
    from rich.progress import Progress

    from deploy.demo.finetune import TRAINED
    from deploy.demo.forms import FORMS, score_forms

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("answers", total=n * len(TRAINED) * (len(FORMS) + 1))
        scores = score_forms(n, lambda: progress.advance(task))
    table = Table("fine-tune", "form", "MB", "right", title=f"Exact match on {n} held-out prompts")
    for row in scores:
        table.add_row(row.task, row.form, f"{row.size / 1e6:.1f}", f"{row.right:.2f}")
    console.print(table)
    typer.echo(json.dumps([row._asdict() for row in scores]))


@app.command()
def twins(
    n: Annotated[int, typer.Option("--n", min=1, help="Test examples of each task.")] = 20,
    exact: Annotated[
        bool, typer.Option("--exact", help="Keep the parts exact, not at equal bytes.")
    ] = False,
) -> None:
    """Serve the experts and their Twin-Merging, and score both. The last line is JSON."""
    _ready()
    from rich.progress import Progress

    from deploy.demo.twins import POLICIES, RANK, score_twins

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("answers", total=n * len(TASKS) * (len(POLICIES) + 3))
        scores = score_twins(n, None if exact else RANK, lambda: progress.advance(task))
    table = Table("answered by", "MB", "right", title=f"Exact match on {n} prompts of each task")
    for row in scores:
        table.add_row(row.arm, f"{row.size / 1e6:.1f}", f"{row.right:.2f}")
    console.print(table)
    typer.echo(json.dumps([row._asdict() for row in scores]))


@app.command()
def mixing(
    pairs: Annotated[int, typer.Option(min=1, help="Requests of each pair of tasks.")] = 12,
    n: Annotated[int, typer.Option("--n", min=1, help="Test examples of each task.")] = 12,
) -> None:
    """Is a mix worth more than the better of its two experts? The last line is JSON."""
    _ready()
    from rich.progress import Progress

    from deploy.demo.mixing import count_answers, measure_mixing

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("answers", total=count_answers(pairs, n))
        rows = measure_mixing(pairs, n, lambda: progress.advance(task))
    table = Table("answered by", "two skills", "above the better expert", "one skill")
    for row in rows:
        over = f"{row.over_best.value:+.2f} ({row.over_best.low:.2f}..{row.over_best.high:.2f})"
        one = "" if row.one_skill is None else f"{row.one_skill:.2f}"
        table.add_row(row.way, f"{row.two_skills:.2f}", over, one)
    console.print(table)
    typer.echo(json.dumps([row._asdict() for row in rows]))


@app.command()
def segments(
    pairs: Annotated[int, typer.Option(min=1, help="Requests of each pair of tasks.")] = 12,
    n: Annotated[int, typer.Option("--n", min=1, help="Test examples of each task.")] = 30,
) -> None:
    """Which requests does the default policy answer in segments? The last line is JSON."""
    _ready()
    from deploy.demo.segments import measure_segments

    with _watch_prompts() as watch:
        found = measure_segments(pairs, n, watch)
    typer.echo(json.dumps(found._asdict()))


@app.command()
def prompts(
    out: Annotated[
        Path, typer.Argument(help="A folder; prompts go to its subfolders train and validation.")
    ],
    n: Annotated[
        int,
        typer.Option(
            "--n",
            min=1,
            help="A task's generated prompts for training; a third as many for validation.",
        ),
    ] = 700,
    both: Annotated[
        int, typer.Option(min=0, help="Prompts of each pair of tasks that want both experts.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the tasks' generators.")] = 1,
) -> None:
    """Write prompts of the splits train and validation, to train a gate on.

    One a line, in <task>.txt and everyday.txt. To those of generators many people's are added for
    training, and, if they are wanted, prompts for two experts, in <task>+<task>.txt.
    """
    from deploy.demo.everyday import read_everyday
    from deploy.demo.tasks.both import draw_requests
    from deploy.demo.voices import SPEAKERS, TRAIN, read_spoken

    counts: dict[Split, int] = {"train": n, "validation": -(-n // 3)}
    for split, count in counts.items():
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            name: [example.line for example in task.examples(split, count, seed)]
            for name, task in TASKS.items()
        }
        texts["everyday"] = read_everyday(split)
        for spoken in read_spoken(SPEAKERS) if split == "train" else ():
            texts[spoken.task or "everyday"].append(" ".join(spoken.prompt.split()))
        texts |= draw_requests(both, seed) if both and split == "train" else {}
        for name, lines in texts.items():
            (folder / f"{name}.txt").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
    console.print(
        f"tta router train --prompts {out / 'train'} --voices {TRAIN}",
        soft_wrap=True,
    )


@app.command()
def strangers() -> None:
    """Measure how well strangers' prompts are routed. The last line is JSON."""
    _ready()
    from deploy.demo.strangers import measure_strangers
    from tta_serve.cli.options import print_table

    with _watch_prompts() as watch:
        found = measure_strangers(watch)
    table = Table("", *_ROUTED)
    for row in found.rows:
        table.add_row(row.way, *(f"{value:.3f}" for value in row[1:]))
    print_table(table)
    typer.echo(json.dumps(found.figures))


@app.command()
def unlabelled() -> None:
    """Measure routing to experts without example prompts. The last line is JSON."""
    _ready()
    from deploy.demo.unlabelled import measure_unlabelled
    from tta_serve.cli.options import print_table

    with _watch_prompts() as watch:
        rows = measure_unlabelled(watch)
    table = Table("known by", *_ROUTED)
    for row in rows:
        table.add_row(row.way, *(f"{value:.3f}" for value in row[1:]))
    print_table(table)
    typer.echo(json.dumps([row._asdict() for row in rows]))


@contextmanager
def _watch_prompts() -> Iterator[Callable[[list[str]], Iterable[str]]]:
    """Show a progress bar meanwhile, and yield what moves it on for each prompt that passes by."""
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("prompts", total=None)

        def watch(texts: list[str]) -> Iterator[str]:
            for text in texts:
                yield text
                progress.advance(task)

        yield watch


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="Where the questions go, as JSON, one a line.")],
    slices: Annotated[
        str | None, typer.Option(help="Slices, with commas between.", show_default="all")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Prompts for each task.")] = 20,
    seed: cli.Seed = cli.SEED,
) -> None:
    """Write the questions of `eval`, or some slices of them, for `tta eval --suite`."""
    from deploy.demo.suite import draw_suite

    drawn = draw_suite(n, seed)
    known = list(dict.fromkeys(question.slice for question in drawn))
    wanted = known if slices is None else slices.split(",")
    if unknown := set(wanted) - set(known):
        raise typer.BadParameter(
            f"--slices: {', '.join(sorted(unknown))}; there are: {', '.join(known)}"
        )
    chosen = [asdict(question) for question in drawn if question.slice in wanted]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in chosen), encoding="utf-8")
    console.print(f"{len(chosen)} questions: {file}", soft_wrap=True)


@app.command("eval")
def evaluate(  # noqa: PLR0913 - one option each
    quick: cli.Quick = False,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, help="Prompts for each task.", show_default="20; 10 with --quick"
        ),
    ] = None,
    every: cli.Every = False,
    arms: cli.Arms = "",
    live: cli.Live = None,
    out: cli.Out = Path("evaluation"),
    seed: cli.Seed = cli.SEED,
) -> None:
    """Judge the demo's policies on its held-out questions, as `tta eval` does with any."""
    from deploy.demo.suite import draw_suite, draw_tuning
    from tta_serve.config.loading import load
    from tta_serve.evaluation.questions import Suite

    config = load(Path(__file__).parent / "serve.yaml", {"model.source": _ready()})
    asked = draw_suite(n or (10 if quick else 20), seed)
    cli.evaluate(
        config,
        Suite(tuple(asked)),
        quick=quick,
        arms=cli.list_wanted(config, arms, quick=quick, every=every),
        live=live,
        tuning=Suite(tuple(draw_tuning(1 if quick else 8, asked, seed))),
        out=out,
        seed=seed,
    )


@app.command()
def experiment(
    users: Annotated[
        int, typer.Option(min=100, max=10_000, help="Simulated users, each with one request.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of the users and what they ask.")] = 1,
    out: Annotated[Path, typer.Option(help="A folder for the report.")] = Path("experiment"),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the server that is started for it.")
    ] = 8010,
) -> None:
    """Run an A/B test on the demo from the first user to the verdict. The last line is JSON."""
    _ready()
    from rich.progress import Progress

    from deploy.demo.experiment import run_demo

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("users", total=users)
        found = run_demo(users, seed, out, port, lambda: progress.advance(task))
    console.print(f"The report is {out / 'report.md'}", soft_wrap=True)
    typer.echo(json.dumps(found))


@app.command()
def pictures(
    users: Annotated[int, typer.Option(min=1, help="Simulated users of the experiment.")] = 560,
    out: Annotated[
        Path | None, typer.Option(help="A folder for them.", show_default="beside the console")
    ] = None,
) -> None:
    """Take pictures of the console, with a real browser, for its README."""
    _ready()
    from rich.progress import Progress

    from deploy.demo.browser import BrowserError
    from deploy.demo.console_pictures import FOLDER, take_pictures

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("users", total=users)
        try:
            take_pictures(out or FOLDER, users, lambda: progress.advance(task))
        except BrowserError as error:
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from error


@app.command()
def visit(
    url: Annotated[str, typer.Argument(help="Of the server.")] = "http://127.0.0.1:8000",
    every: Annotated[float, typer.Option(min=0, help="Seconds between questions.")] = 2.0,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="How many questions.", show_default="no end")
    ] = None,
) -> None:
    """Ask a running demo one question after the other, so that dashboards have data."""
    from deploy.demo.visitors import visit as ask

    console.print(f"{ask(url, every, n)} answers")


if __name__ == "__main__":
    app()
