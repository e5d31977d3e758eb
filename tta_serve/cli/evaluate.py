"""The command `tta eval`."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tta_serve.cli.options import console, print_table

if TYPE_CHECKING:
    from rich.progress import Progress

    from tta_serve.config.sections import ServeConfig
    from tta_serve.evaluation.questions import Suite
    from tta_serve.evaluation.results import Results

SEED = 5
"""The default; earlier seeds of the demo's test split have been looked at."""
_QUICK_MOST = 24
_QUICK_TIMED = 12
_FULL_TIMED = 60

Config = Annotated[Path, typer.Option(help="As `tta serve` takes it.")]
SuiteFile = Annotated[
    Path | None,
    typer.Option(
        "--suite", help="Questions as JSON, one a line (tta_serve/evaluation/questions.py)."
    ),
]
TaskFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks",
        help=(
            "A task of lm-evaluation-harness, or a folder of such: YAML with local data files,"
            " generate_until and exact_match. Can be given again."
        ),
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Documents of each task, the first ones.", show_default="all of them"),
]
Tune = Annotated[
    Path | None,
    typer.Option(
        help="Further questions, by which density and scale of each static merge are tuned.",
        show_default="each method's own",
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=(
            "Fewer questions and merges, and of the policies the default, a gate and a retrieval:"
            " minutes on two cores."
        ),
    ),
]
Every = Annotated[bool, typer.Option("--all", help="All policies and entries, even with --quick.")]
Arms = Annotated[
    str,
    typer.Option(
        help=(
            "Names or kinds of arms, with commas between; base, oracle and default are always"
            " there."
        )
    ),
]
Live = Annotated[
    list[str] | None,
    typer.Option(
        help="An arm that answers traffic, beside the default policy.",
        show_default="all policies; none with --quick",
    ),
]
Out = Annotated[
    Path, typer.Option(help="A folder for report.md, pictures, results.json and answers.jsonl.")
]
Seed = Annotated[int, typer.Option(help="Of orders and of intervals.")]


def command(  # noqa: PLR0913 - one option each
    config: Config,
    suite: SuiteFile = None,
    tasks: TaskFiles = None,
    limit: Limit = None,
    quick: Quick = False,
    every: Every = False,
    arms: Arms = "",
    live: Live = None,
    tune: Tune = None,
    out: Out = Path("evaluation"),
    seed: Seed = SEED,
) -> None:
    """Judge every policy on held-out questions, beside the base, experts, merges and an oracle.

    Starts two servers on this machine, one after the other. Tables on the terminal and in the
    report; the last line is JSON.
    """
    from tta_serve.config.loading import load
    from tta_serve.evaluation.questions import read_suite

    loaded, questions = load(config, {}), read_questions(suite, tasks or [], limit)
    tuning = None if tune is None else read_suite(tune)
    evaluate(
        loaded,
        questions,
        quick=quick,
        arms=list_wanted(loaded, arms, quick=quick, every=every),
        live=live,
        tuning=tuning,
        out=out,
        seed=seed,
    )


def read_questions(suite: Path | None, tasks: list[Path], limit: int | None) -> Suite:
    """Read the questions of a suite, of tasks, or of both.

    Args:
        suite: The suite's file; None for none.
        tasks: Files and folders of tasks of lm-evaluation-harness.
        limit: How many documents of each task are asked; None for all.

    Raises:
        BadParameter: There are neither, or a limit without tasks.
        ConfigError: A file cannot be used.
    """
    from tta_serve.evaluation.harness_tasks import read_tasks
    from tta_serve.evaluation.questions import Suite, read_suite

    if suite is None and not tasks:
        raise typer.BadParameter("give --suite FILE, --tasks FOLDER_OR_FILE, or both")
    if limit is not None and not tasks:
        raise typer.BadParameter("--limit is of tasks: give --tasks FOLDER_OR_FILE with it")
    own = () if suite is None else read_suite(suite).questions
    return Suite((*own, *read_tasks(tasks, limit).questions))


def list_wanted(config: ServeConfig, arms: str, *, quick: bool, every: bool) -> tuple[str, ...]:
    """Return the names or kinds of the arms that are judged, none for all.

    Args:
        config: Of the server.
        arms: Those that were asked for, with commas between.
        quick: Whether few are enough where none were asked for: experts, merges, the default
            policy, and the first gate and retrieval that decide before the pass.
        every: Whether all are wanted nevertheless.

    Raises:
        ConfigError: All are wanted, and some.
    """
    from tta_serve.exceptions import ConfigError

    if chosen := tuple(name.strip() for name in arms.split(",") if name.strip()):
        if every:
            raise ConfigError("--arms names some arms and --all wants all: leave out one of them")
        return (*chosen, config.default_policy)
    if every or not quick:
        return ()
    first = {p.type: name for name, p in reversed(config.policies.items()) if not p.inline}
    policies = (first[kind] for kind in ("gate", "retrieval") if kind in first)
    return ("expert", "merge", config.default_policy, *policies)


def evaluate(  # noqa: PLR0913 - one option each
    config: ServeConfig,
    questions: Suite,
    *,
    quick: bool,
    arms: tuple[str, ...],
    live: list[str] | None,
    tuning: Suite | None,
    out: Path,
    seed: int,
) -> None:
    """Do what `tta eval` does, once the config and the questions are read.

    Args:
        config: Of the server that is judged.
        questions: What it is asked.
        quick: Whether to ask fewer questions of fewer arms.
        arms: Names or kinds of arms; all if empty.
        live: Arms that answer traffic, beside the default policy.
        tuning: What static merges are tuned by; None to leave them as they are.
        out: A folder for what comes of it.
        seed: Of orders and of intervals.
    """
    from tta_serve.evaluation.merges import QUICK_METHODS, list_methods
    from tta_serve.evaluation.plan import Plan
    from tta_serve.evaluation.run import Evaluation, EvaluationScope
    from tta_serve.search.objectives import check_wanted
    from tta_serve.search.tune_scales import tune_scales

    if tuning is not None:
        check_wanted(tuning.questions)

    # Who is asked what.
    default = config.default_policy
    also = live or ([] if quick else list(config.policies))
    plan = Plan(
        suite=questions,
        default=default,
        quick=quick,
        seed=seed,
        most=_QUICK_MOST if quick else None,
        timed=_QUICK_TIMED if quick else _FULL_TIMED,
        live=(default, *(name for name in also if name != default)),
    )
    scope = EvaluationScope(
        arms=arms,
        methods=tuple(
            method
            for method in list_methods(_count_experts(config))
            if not quick or method in QUICK_METHODS
        ),
        fronts=not quick,
        tune=None if tuning is None else partial(tune_scales, questions=tuning.questions),
    )

    # The servers run, for minutes to hours.
    prepare_servers(out)
    start = time.monotonic()
    with show_steps() as progress:
        results = Evaluation(config, plan, scope, progress).run()

    minutes = round((time.monotonic() - start) / 60, 1)
    results.about = {**_describe_run(results), "quick": quick, "minutes": minutes}
    _write(out, results)


def show_steps() -> Progress:
    """Return a progress of steps, on stderr: stdout has the tables and the line of JSON."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _count_experts(config: ServeConfig) -> int:
    from adapters.library.library import Library

    return len(Library.open(config.library.path).usable().names)


def prepare_servers(out: Path) -> None:
    """Let what can go wrong at the end go wrong now, and a termination end the servers too."""
    from tta_serve.exceptions import ConfigError

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from None
    signal.signal(signal.SIGTERM, interrupt)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    for name in ("tta_serve", "ray.serve", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _describe_run(results: Results) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "seed": results.seed,
        "questions": {group: len(numbers) for group, numbers in results.suite.groups.items()},
    }


def _write(out: Path, results: Results) -> None:
    """Write all files, and print the main tables and the line of JSON."""
    from tta_serve.evaluation import plots, report
    from tta_serve.evaluation.figures import compute_figures

    found = compute_figures(results)
    (out / "report.md").write_text(report.to_markdown(found), encoding="utf-8")
    (out / "results.json").write_text(
        json.dumps(report.to_plain(found), indent=1), encoding="utf-8"
    )
    with (out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for row in report.list_answers(results):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    plots.draw_plots(found, out)

    for sheet in report.make_main_sheets(found):
        print_table(sheet.to_table())
    console.print(f"The report is {out / 'report.md'}")
    typer.echo(json.dumps(report.make_last_line(found)))
