"""The command `python -m deploy.demo`: base model, experts, scores, evaluation, experiment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.demo.base import BaseModelError, ensure_base
from deploy.demo.tasks import TASKS, Split
from tta_serve.cli import evaluate as cli

app = typer.Typer(help="The demo library: base model, experts, scores.", no_args_is_help=True)
console = Console()

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
def train(
    names: Names = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; by default what each task needs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data and of the first weights.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Train again experts that are there.")
    ] = False,
) -> None:
    """Train experts, one after the other; an interrupted training goes on where it stopped."""
    chosen = _chosen(names)
    _ready()
    # Threads that spin for long are four times as slow on a shared machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    from deploy.demo.model import EXPERTS
    from deploy.demo.train import STEPS, TrainingSettings
    from deploy.demo.train import train as train_expert

    for name in chosen:
        if (EXPERTS / name / "adapter_model.safetensors").exists() and not force:
            console.print(f"{name}: there already, --force trains it again")
            continue
        train_expert(TrainingSettings(name, steps or STEPS[name], seed), console)


@app.command()
def score(
    names: Names = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Test examples per task.")] = 100,
) -> None:
    """Score base and experts on the held-out test split, by exact match.

    The scores go to experts/results.json too.
    """
    chosen = _chosen(names)
    _ready()
    from deploy.demo.evaluate import evaluate_test

    table = Table("expert", "base", "expert score", title=f"Exact match on {n} held-out prompts")
    for name in chosen:
        with console.status(f"{name} ..."):
            scores = evaluate_test(name, n)
        table.add_row(name, *(f"{value:.2f}" for value in scores))
    console.print(table)


@app.command()
def prompts(
    out: Annotated[
        Path, typer.Argument(help="A folder; prompts go to its subfolders train and validation.")
    ],
    n: Annotated[
        int,
        typer.Option(
            "--n", min=1, help="Prompts of a task for training; a third as many for validation."
        ),
    ] = 300,
    seed: Annotated[int, typer.Option(help="Of the tasks' generators.")] = 1,
) -> None:
    """Write prompts of the splits train and validation, to train a gate on.

    One a line, in <task>.txt and everyday.txt.
    """
    from deploy.demo.everyday import read_everyday

    counts: dict[Split, int] = {"train": n, "validation": -(-n // 3)}
    for split, count in counts.items():
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            name: [example.prompt for example in task.examples(split, count, seed)]
            for name, task in TASKS.items()
        }
        for name, lines in {**texts, "everyday": read_everyday(split)}.items():
            (folder / f"{name}.txt").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
    console.print(
        f"tta router train --prompts {out / 'train'} --validation {out / 'validation'}",
        soft_wrap=True,
    )


@app.command("eval")
def evaluate(  # noqa: PLR0913 - one option each
    quick: cli.Quick = False,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, help="Prompts for each task.", show_default="20; 8 with --quick"
        ),
    ] = None,
    arms: cli.Arms = "",
    live: cli.Live = None,
    out: cli.Out = Path("evaluation"),
    seed: cli.Seed = cli.SEED,
) -> None:
    """Judge the demo's policies on its held-out questions, as `tta eval` does with any."""
    from deploy.demo.suite import draw_suite
    from tta_serve.config import load
    from tta_serve.evaluation.questions import Suite

    config = load(Path(__file__).parent / "serve.yaml", {"model.source": _ready()})
    questions = Suite(tuple(draw_suite(n or (8 if quick else 20), seed)))
    cli.evaluate(config, questions, quick=quick, arms=arms, live=live, out=out, seed=seed)


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


if __name__ == "__main__":
    app()
