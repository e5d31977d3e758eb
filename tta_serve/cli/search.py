"""The command `tta search`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tta_serve.cli.admin_client import KEY_VARIABLE
from tta_serve.cli.evaluate import prepare_servers, show_steps
from tta_serve.cli.options import console, print_table

if TYPE_CHECKING:
    from tta_serve.evaluation.questions import Question
    from tta_serve.search.objectives import Measure
    from tta_serve.search.search_job import SearchOutcome, SearchSettings
    from tta_serve.search.searcher import Algorithm
    from tta_serve.search.server_facts import ServerFacts

API_KEY_VARIABLE = "TTA_API_KEY"
JUDGE_KEY_VARIABLE = "TTA_JUDGE_KEY"

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="QUESTIONS...",
        help="Questions as JSON, one a line: `prompt`, `want`, and `task` and `kind` if you like.",
    ),
]
Config = Annotated[
    Path | None, typer.Option(help="Search on a server of its own, with this config.")
]
Url = Annotated[str | None, typer.Option(help="Search on the server that runs there.")]
ByOption = Annotated[
    Literal["expert", "component", "third", "layer"],
    typer.Option("--by", help="What has a coefficient of its own."),
]
AlgorithmOption = Annotated[
    str, typer.Option("--algorithm", help="Its name (tta_serve/search/README.md).")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE, an option of the algorithm.")
]
ObjectiveOption = Annotated[
    str,
    typer.Option("--objective", help="graded, exact, logprob, judge, or a function MODULE:NAME."),
]
Out = Annotated[Path, typer.Option(help="A folder for the journal, by which a search goes on.")]
Name = Annotated[
    str | None, typer.Option(help="Store what is found as an entry (or front) of this name.")
]
ExpertsOption = Annotated[
    str | None, typer.Option("--experts", help="Names with commas between; all if left out.")
]
Requests = Annotated[int | None, typer.Option(min=1, help="How many questions to ask at most.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="How long to search at most.")]
Patience = Annotated[
    int | None, typer.Option(min=1, help="End after so many batches without anything better.")
]
Share = Annotated[
    float, typer.Option("--held-out", min=0.05, max=0.95, help="The share never searched on.")
]
Most = Annotated[
    int | None, typer.Option("--questions", min=1, help="How many to search on, of all tasks.")
]
JudgeUrl = Annotated[str | None, typer.Option(help="The judge's API, ending in /v1.")]
JudgeModel = Annotated[str | None, typer.Option(help="The judge's model.")]
Rubric = Annotated[Path | None, typer.Option(help="A file of what the judge is told.")]
ActsFrom = Annotated[
    Literal["start", "user_turn", "answer"] | None,
    typer.Option(help="Where mixes begin to act; from the answer on all share the prompt's cache."),
]
Answer = Annotated[int | None, typer.Option(min=1, help="Tokens of an answer, at most.")]
Root = Annotated[
    Path | None, typer.Option("--library", help="The library's folder, if not the server's own.")
]


@dataclass(frozen=True)
class _Wanted:
    """All that the command was told."""

    by: Literal["expert", "component", "third", "layer"]
    low: float
    high: float
    algorithm: str
    options: list[str]
    objective: str
    experts: str | None
    requests: int | None
    minutes: float | None
    patience: int | None
    share: float
    most: int | None
    seed: int
    acts_from: str | None
    answer: int | None
    judge_url: str | None
    judge_model: str | None
    rubric: Path | None
    out: Path
    name: str | None
    library: Path | None
    replace: bool


def command(  # noqa: PLR0913 - one option each
    files: Files,
    config: Config = None,
    url: Url = None,
    by: ByOption = "expert",
    low: Annotated[float, typer.Option(help="The least coefficient.")] = 0.0,
    high: Annotated[float, typer.Option(help="The greatest coefficient.")] = 1.0,
    algorithm: AlgorithmOption = "cma_es",
    option: Options = None,
    objective: ObjectiveOption = "graded",
    experts: ExpertsOption = None,
    requests: Requests = None,
    minutes: Minutes = None,
    patience: Patience = None,
    held_out: Share = 0.5,
    questions: Most = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    acts_from: ActsFrom = None,
    answer: Answer = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    rubric: Rubric = None,
    out: Out = Path("search"),
    name: Name = None,
    library: Root = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what has the name.")] = False,
) -> None:
    """Search the coefficients of a merge on task scores, every candidate a mix of a running engine.

    Tables on the terminal, and a last line of JSON. The same command goes on where it was ended.
    """
    from tta_serve.evaluation.questions import read_suite

    if (config is None) == (url is None):
        raise typer.BadParameter("give --config FILE for a server of its own, or --url of one")
    if requests is None and minutes is None and patience is None:
        raise typer.BadParameter("give a budget: --requests, --minutes or --patience")
    wanted = _Wanted(
        by,
        low,
        high,
        algorithm,
        option or [],
        objective,
        experts,
        requests,
        minutes,
        patience,
        held_out,
        questions,
        seed,
        acts_from,
        answer,
        judge_url,
        judge_model,
        rubric,
        out,
        name,
        library,
        replace,
    )
    asked = [one for file in files for one in read_suite(file, "search").questions]
    _check_words(wanted, asked)
    prepare_servers(out)
    with _reach(config, url) as (place, key):
        _search(wanted, asked, place, key)


def _check_words(wanted: _Wanted, asked: list[Question]) -> None:
    """Refuse what no server could make right, before one is started."""
    from tta_serve.search.split import split_questions

    _make_algorithm(wanted)
    _find_measure(wanted)
    split_questions(asked, wanted.share, wanted.seed, wanted.most)


@contextmanager
def _reach(config: Path | None, url: str | None) -> Iterator[tuple[str, str]]:
    """Yield a server's address and admin key: the user's, or one that runs meanwhile."""
    from tta_serve.exceptions import ConfigError

    if url is not None:
        if not (key := os.environ.get(KEY_VARIABLE)):
            raise ConfigError(f"set {KEY_VARIABLE} to the key that the server was started with")
        yield url.rstrip("/"), key
        return

    from adapters.library.library import Library
    from tta_serve.config.loading import load
    from tta_serve.evaluation.local_server import serve_locally
    from tta_serve.search.server_facts import reduce_to_search

    loaded = load(Path(str(config)), {})
    names = Library.open(loaded.library.path).usable().names
    with serve_locally(reduce_to_search(loaded, len(names))) as access:
        yield access


def _search(wanted: _Wanted, asked: list[Question], url: str, key: str) -> None:
    from tta_serve.evaluation.server_client import ServerClient
    from tta_serve.search.report import check_name
    from tta_serve.search.search_job import run_search
    from tta_serve.search.server_facts import read_facts

    # What can be wrong is found before anything is asked.
    facts = read_facts(url, key)
    settings = _read_settings(wanted, asked, facts)
    root = wanted.library or facts.library
    if wanted.name is not None:
        check_name(root, wanted.name, list(facts.digests), replace=wanted.replace)
        _check_front(wanted, settings, root)

    async def run(tell: Callable[[], None]) -> SearchOutcome:
        api_key = os.environ.get(API_KEY_VARIABLE, "unused")
        async with ServerClient(url, key, facts.requests, api_key) as server:
            return await run_search(settings, facts, server, tell)

    with show_steps() as progress:
        task = progress.add_task("requests", total=wanted.requests)
        outcome = asyncio.run(run(lambda: progress.advance(task)))
    _write(wanted, settings, outcome, facts, root)


def _read_settings(wanted: _Wanted, asked: list[Question], facts: ServerFacts) -> SearchSettings:
    from tta_serve.search.scorebook import Budget
    from tta_serve.search.search_job import SearchSettings
    from tta_serve.search.space import SearchSpace
    from tta_serve.search.split import split_questions

    names = wanted.experts.split(",") if wanted.experts else sorted(facts.digests)
    layers = facts.count_layers() if wanted.by in ("third", "layer") else 1
    seconds = None if wanted.minutes is None else 60 * wanted.minutes
    return SearchSettings(
        space=SearchSpace(
            tuple(name.strip() for name in names),
            facts.make_rules(layers),
            wanted.by,
            wanted.low,
            wanted.high,
        ),
        split=split_questions(asked, wanted.share, wanted.seed, wanted.most),
        objective=wanted.objective,
        measure=_find_measure(wanted),
        algorithm_name=wanted.algorithm,
        algorithm=_make_algorithm(wanted),
        out=wanted.out,
        budget=Budget(wanted.requests, seconds),
        patience=wanted.patience,
        seed=wanted.seed,
        acts_from=wanted.acts_from,
        tokens=wanted.answer,
        about={"judge": [wanted.judge_url, wanted.judge_model, _read_rubric(wanted)]},
    )


def _make_algorithm(wanted: _Wanted) -> Algorithm:
    from tta_serve.search.algorithms.registry import make_algorithm

    return make_algorithm(wanted.algorithm, dict(map(_read_option, wanted.options)))


def _read_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--option is NAME=VALUE, got {text!r}")
    return name, value


def _read_rubric(wanted: _Wanted) -> str | None:
    return None if wanted.rubric is None else wanted.rubric.read_text(encoding="utf-8").strip()


def _find_measure(wanted: _Wanted) -> Measure | None:
    """Return what an answer is worth; None for log-probabilities."""
    from tta_serve.search.judge import RUBRIC, Judge
    from tta_serve.search.objectives import load_function
    from tta_serve.search.search_job import MEASURES, REFERENCE

    if wanted.objective == REFERENCE:
        return None
    if wanted.objective in MEASURES:
        return MEASURES[wanted.objective]
    if wanted.objective != "judge":
        return load_function(wanted.objective)
    if wanted.judge_url is None or wanted.judge_model is None:
        raise typer.BadParameter("--objective judge wants --judge-url and --judge-model")
    key = os.environ.get(JUDGE_KEY_VARIABLE, "unused")
    return Judge(wanted.judge_url, wanted.judge_model, _read_rubric(wanted) or RUBRIC, key).rate


def _check_front(wanted: _Wanted, settings: SearchSettings, root: Path) -> None:
    from tta_serve.search.front_store import check_front

    if settings.algorithm.fronts:
        check_front(settings, root, str(wanted.name), replace=wanted.replace)


def _write(
    wanted: _Wanted,
    settings: SearchSettings,
    outcome: SearchOutcome,
    facts: ServerFacts,
    root: Path,
) -> None:
    """Store what was found, write the files, and print the tables and the line of JSON."""
    from tta_serve.search import report
    from tta_serve.search.front_store import measure_volume, store_front
    from tta_serve.search.plots import draw_history

    more: dict[str, Any] = {}
    stored = False
    if settings.algorithm.fronts:
        more["hypervolume"] = round(measure_volume(outcome), 4)
        if wanted.name is not None:
            args = (root, wanted.name, settings, outcome, facts)
            more["front"] = store_front(*args, replace=wanted.replace)
    elif wanted.name is not None:
        args = (root, wanted.name, settings, outcome, facts)
        stored = report.store_entry(*args, replace=wanted.replace)

    line = report.make_line(settings, outcome, wanted.name if stored else None) | more
    result = {**line, "history": report.list_history(outcome)}
    (wanted.out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    draw_history(outcome.run.history, wanted.out / "history.png")
    for sheet in report.make_sheets(settings, outcome):
        print_table(sheet.to_table())
    if stored:
        model = f"{facts.requests.served}:{wanted.name}"
        console.print(
            f"Stored as {wanted.name}; from the next start on clients may ask for {model}"
        )
    typer.echo(json.dumps(line))
