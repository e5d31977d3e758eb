"""The command `tta eval`."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tta_serve.config import ServeConfig
    from tta_serve.evaluation.questions import Suite
    from tta_serve.evaluation.results import Results

SEED = 5  # earlier ones of the demo's test split have been looked at
_QUICK_N, _QUICK_MOST, _QUICK_TIMED = 8, 24, 12
_FULL_N, _FULL_TIMED = 20, 60

Config = Annotated[Path | None, typer.Option(help="As `tta serve` takes it.", show_default="the demo's, in a checkout")]
SuiteFile = Annotated[
    Path | None,
    typer.Option(
        "--suite", help="Questions as JSON, one a line (tta_serve/evaluation/questions.py).", show_default="the demo's"
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer questions, merges and arms: 15 to 45 minutes on two cores.")]
N = Annotated[
    int | None, typer.Option("--n", min=1, help="The demo's prompts for each task.", show_default="20; 8 with --quick")
]
Arms = Annotated[
    str, typer.Option(help="Names or kinds of arms, with commas between; base, oracle and default are always there.")
]
Live = Annotated[
    list[str] | None,
    typer.Option(
        help="An arm that answers traffic, beside the default policy.", show_default="all policies; none with --quick"
    ),
]
Out = Annotated[Path, typer.Option(help="A folder for report.md, pictures, results.json and answers.jsonl.")]
Seed = Annotated[int, typer.Option(help="Of the demo's questions, of orders and of intervals.")]


def command(  # noqa: PLR0913 - one option each
    config: Config = None,
    suite: SuiteFile = None,
    quick: Quick = False,
    n: N = None,
    arms: Arms = "",
    live: Live = None,
    out: Out = Path("evaluation"),
    seed: Seed = SEED,
) -> None:
    """Judge every policy on held-out questions, beside the base, experts, merges and the right expert.

    Starts two servers on this machine, one after the other. Tables on the terminal and in the report; the last line is JSON.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tta_serve.evaluation.merges import QUICK_METHODS, applicable
    from tta_serve.evaluation.plan import Plan
    from tta_serve.evaluation.run import Evaluation, Wanted

    loaded, questions = _config(config), _suite(suite, n or (_QUICK_N if quick else _FULL_N), seed)
    default = loaded.default_policy
    also = live or ([] if quick else list(loaded.policies))
    chosen = tuple(name.strip() for name in arms.split(",") if name.strip())
    plan = Plan(
        suite=questions,
        default=default,
        quick=quick,
        seed=seed,
        most=_QUICK_MOST if quick else None,
        timed=_QUICK_TIMED if quick else _FULL_TIMED,
        live=(default, *(name for name in also if name != default)),
    )
    methods = tuple(m for m in applicable(_experts(loaded)) if not quick or m in QUICK_METHODS)
    wanted = Wanted(arms=(*chosen, default) if chosen else (), methods=methods, fronts=not quick)
    _prepare(out)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        results = Evaluation(loaded, plan, wanted, progress).run()
    results.about = {**_about(results), "quick": quick, "minutes": round((time.monotonic() - start) / 60, 1)}
    _write(out, results)


def _config(file: Path | None) -> ServeConfig:
    """The config; the demo's on its base, which is made if it is not there."""
    from tta_serve.config import ConfigError, load

    if file is not None:
        return load(file, {})
    _demo_or_fail("--config FILE")
    from deploy import demo
    from deploy.demo.base import BaseModelError, ensure_base

    try:
        base = ensure_base()
    except BaseModelError as error:
        raise ConfigError(str(error)) from None
    return load(Path(str(demo.__file__)).parent / "serve.yaml", {"model.source": str(base)})


def _suite(file: Path | None, n: int, seed: int) -> Suite:
    from tta_serve.evaluation.questions import Suite, read_suite

    if file is not None:
        return read_suite(file)
    _demo_or_fail("--suite FILE")
    from deploy.demo.suite import suite

    return Suite(tuple(suite(n, seed)))


def _demo_or_fail(option: str) -> None:
    if importlib.util.find_spec("deploy") is None:
        raise typer.BadParameter(f"give {option}: the demo is there only in a checkout of the repository")


def _experts(config: ServeConfig) -> int:
    from adapters.library import Library

    return len(Library.open(config.library.path).names)


def _prepare(out: Path) -> None:
    """What can go wrong at the end goes wrong now; a termination ends the servers too."""
    from tta_serve.config import ConfigError

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from None
    signal.signal(signal.SIGTERM, interrupt)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    for name in ("ray.serve", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _about(results: Results) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "seed": results.seed,
        "questions": {group: len(numbers) for group, numbers in results.suite.groups.items()},
    }


def _write(out: Path, results: Results) -> None:
    """All files, the tables on the terminal, the line of JSON."""
    from tta_serve.evaluation import pictures, report
    from tta_serve.evaluation.figures import figures

    found = figures(results)
    line = report.last_line(found)
    (out / "report.md").write_text(report.markdown(found))
    (out / "results.json").write_text(json.dumps(report.plain(found), indent=1))
    with (out / "answers.jsonl").open("w") as file:
        for row in report.answers(results):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    pictures.draw(found, out)
    console = Console(highlight=False, markup=False)
    report.show(console, found)
    console.print(f"The report is {out / 'report.md'}")
    print(json.dumps(line), flush=True)
