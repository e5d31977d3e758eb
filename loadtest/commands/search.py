"""`python -m loadtest search`: candidates scored an hour, beside merging and loading each."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml

from loadtest.commands.search_algorithms import measure_algorithms
from loadtest.common import machine
from loadtest.common.console import progress
from loadtest.common.measure import Repeats, interleave, median_ratio, spread
from loadtest.common.seeded_run import run_seeded
from loadtest.common.workload import ROOT

if TYPE_CHECKING:
    from loadtest.sides.engines import Setup
    from tta_serve.evaluation.questions import Question
    from tta_serve.evaluation.server_client import ServerClient
    from tta_serve.search.server_facts import ServerFacts

BATCH = 16
"""Candidates of a batch, as many as the server has slots."""
HIDDEN = {"sql": 0.7, "dates": 0.45}
"""The mix whose own answers the search for a known optimum is given as the wanted ones."""
_TEMPLATE = ROOT / "deploy" / "demo" / "chat_template.jinja"

T = TypeVar("T")
Coefficients = dict[str, float]


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats and questions.")] = False,
    seed: Annotated[int, typer.Option(help="Of questions and candidates.")] = 0,
    algorithms: Annotated[
        bool, typer.Option("--algorithms", help="Compare the algorithms alone, without an engine.")
    ] = False,
) -> None:
    """Measure candidates scored an hour, and whether a known optimum is found."""
    run_seeded(compare_algorithms if algorithms else measure, quick=quick, seed=seed)


def compare_algorithms(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure how soon each algorithm is near an optimum that is known."""
    return {"algorithms": measure_algorithms(folder, 2000, 3 if quick else 5, seed)}


def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Measure both on one server, which runs all the time."""
    with _serve_base(folder) as (url, key):
        bench = SearchBench(folder, url, key, _draw_questions(4 if quick else 12, seed), seed)
        result = bench.compare_rates(Repeats(3 if quick else 7))
        progress.log(machine.round_floats(result))
        return result | bench.find_hidden(4 if quick else 12, 480 if quick else 4000)


@contextmanager
def _serve_base(folder: Path) -> Iterator[tuple[str, str]]:
    """Run `tta serve` on the demo's experts, with the base as its only policy."""
    from deploy.demo.base import ensure_base
    from loadtest.sides.servers import ServerProcess, ours, read_demo_config
    from tta_serve.evaluation.local_server import find_free_port

    config = read_demo_config() | {"default_policy": "base"}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    key, port = secrets.token_hex(8), find_free_port()
    environment = {**os.environ, "TTA_ADMIN_KEY": key}
    server = ServerProcess(ours(ensure_base(), port, file), port, folder / "log", environment)
    try:
        yield server.url, key
    finally:
        server.close()


def _draw_questions(count: int, seed: int, tasks: Collection[str] = ()) -> list[Question]:
    """Draw questions of some of the demo's tasks, or all, of each as many as of another."""
    from deploy.demo.suite.question_parts import make_question
    from deploy.demo.tasks import TASKS

    names = sorted(tasks or TASKS)
    each = -(-count // len(names))
    drawn = [
        [make_question("search", task, e) for e in TASKS[task].examples("validation", each, seed)]
        for task in names
    ]
    return [question for turn in zip(*drawn, strict=True) for question in turn][:count]


@dataclass
class SearchBench:
    """A server, and the questions that candidates are scored by."""

    folder: Path
    """A temporary one."""
    url: str
    """The server's address."""
    key: str
    """Its admin key."""
    questions: list[Question]
    """What each candidate is asked."""
    seed: int
    """Of candidates."""
    facts: ServerFacts = field(init=False)
    """What the server serves."""
    setup: Setup = field(init=False)
    """What fresh engines start from."""
    limits: dict[Question, int] = field(init=False)
    """The most tokens of an answer to each question."""
    _scores: dict[int, list[float]] = field(default_factory=dict)
    _differ: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        from loadtest.sides.session import setup_in
        from tta_serve.search.search_job import limit_answers
        from tta_serve.search.server_facts import read_facts

        self.facts = read_facts(self.url, self.key)
        self.setup = setup_in(self.folder)
        self.limits = self._run(lambda server: limit_answers(None, self.questions, server))

    def compare_rates(self, repeats: Repeats) -> dict[str, Any]:
        """Return candidates an hour of both ways, the same questions in turns."""
        # Once unmeasured: what is compiled at first use is there then.
        self._run(lambda server: self._score_all(server, self._draw(-1)[:2]))
        rates = interleave({"live": self._score_live, "merged": self._score_merged}, repeats)
        return {
            "questions": len(self.questions),
            "candidates_hour": median(rates["live"]),
            "candidates_hour_spread": spread(rates["live"]),
            "merge_then_eval_hour": median(rates["merged"]),
            "merge_then_eval_hour_spread": spread(rates["merged"]),
            "candidates_hour_over_merge_then_eval": median_ratio(rates["live"], rates["merged"]),
            "scores_differ": max(self._differ),
        }

    def find_hidden(self, count: int, requests: int) -> dict[str, Any]:
        """Search a mix by its own answers, whose score is 1 at the mix itself."""
        found = self._run(lambda server: self._find_hidden(server, count, requests))
        return {"hidden": HIDDEN, **found}

    def _draw(self, number: int) -> list[Coefficients]:
        """Draw the candidates of a batch, which no other batch has."""
        rng = random.Random(f"search/{self.seed}/{number}")
        names = sorted(self.facts.digests)
        return [
            {name: round(rng.randint(1, 20) * 0.05, 2) for name in rng.sample(names, 3)}
            for _ in range(BATCH)
        ]

    def _score_live(self, number: int) -> float:
        """Score a batch of candidates on the server, and return the rate an hour."""
        batch = self._draw(number)
        began = time.perf_counter()
        self._scores[number] = self._run(lambda server: self._score_all(server, batch))
        rate = 3600 * len(batch) / (time.perf_counter() - began)
        progress.log(f"live, an hour: {rate:.0f}")
        return rate

    def _score_merged(self, number: int) -> float:
        """Score the batch's first candidate by a checkpoint, and return the rate an hour."""
        from loadtest.sides.merged_checkpoint import answer_by_checkpoint
        from tta_serve.evaluation.scoring import score

        [first, *_] = self._draw(number)
        template = _TEMPLATE.read_text(encoding="utf-8")
        limits = [self.limits[question] for question in self.questions]
        began = time.perf_counter()
        answers = answer_by_checkpoint(self.setup, first, self.questions, limits, template)
        graded = [
            score(q.kind, str(q.want), q.parts, answer).graded
            for q, answer in zip(self.questions, answers, strict=True)
        ]
        rate = 3600 / (time.perf_counter() - began)
        progress.log(f"merged and loaded, an hour: {rate:.0f}")
        if number in self._scores:
            self._differ.append(abs(self._scores[number][0] - sum(graded) / len(graded)))
        return rate

    def _run(self, job: Callable[[ServerClient], Coroutine[Any, Any, T]]) -> T:
        from tta_serve.evaluation.server_client import ServerClient

        async def run() -> T:
            async with ServerClient(self.url, self.key, self.facts.requests) as server:
                return await job(server)

        return asyncio.run(run())

    async def _score_all(self, server: ServerClient, batch: list[Coefficients]) -> list[float]:
        from router.probing import gather_all
        from tta_serve.search.objectives import AnswerObjective, measure_graded

        objective = AnswerObjective(server, measure_graded, self.limits)
        pairs = [(mix, question) for mix in batch for question in self.questions]
        scores = await gather_all(
            lambda pair: objective.score(pair[1], self.facts.requests.mix(pair[0])), pairs, BATCH
        )
        each = len(self.questions)
        return [sum(scores[i : i + each]) / each for i in range(0, len(scores), each)]

    async def _find_hidden(self, server: ServerClient, count: int, requests: int) -> dict[str, Any]:
        """Search with Frank-Wolfe on questions whose wanted answers are those of `HIDDEN`."""
        from tta_serve.evaluation.questions import Question
        from tta_serve.search.algorithms.frank_wolfe import FrankWolfe
        from tta_serve.search.objectives import measure_graded
        from tta_serve.search.scorebook import Budget
        from tta_serve.search.search_job import SearchSettings, run_search
        from tta_serve.search.space import SearchSpace
        from tta_serve.search.split import QuestionSplit

        hidden, asked = self.facts.requests.mix(HIDDEN), []
        for question in _draw_questions(count, self.seed, HIDDEN):
            answer = await server.answer(question.prompt, hidden, 40)
            want = answer.choices[0].message.content or ""
            asked.append(Question("search", question.prompt, want, kind="tokens"))
        began = time.perf_counter()
        settings = SearchSettings(
            space=SearchSpace(tuple(sorted(self.facts.digests)), self.facts.make_rules(1)),
            split=QuestionSplit(tuple(asked), tuple(asked[:1])),
            objective="graded",
            measure=measure_graded,
            algorithm_name="frank_wolfe",
            algorithm=FrankWolfe(),
            out=self.folder / "search",
            budget=Budget(requests),
            patience=None,
            seed=self.seed,
        )
        outcome = await run_search(settings, self.facts, server)
        best = outcome.run.best
        return {
            "found": settings.space.read(best.point).as_json(),
            "found_over_known_optimum": best.mean,
            "best_single_score": max(one.mean for one in outcome.run.task.known),
            "search_requests": outcome.requests,
            "search_mixes": outcome.mixes,
            "search_s": time.perf_counter() - began,
        }
