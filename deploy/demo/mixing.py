"""Whether two experts are worth more than the better of them: `python -m deploy.demo mixing`.

Requests of two skills are asked of each expert that they are for, and of mixes of the two and of
one after the other, told to the server; those and prompts of one skill also of policies that decide
alone. The better expert of a pair of tasks is the one whose mean over the pair's requests is the
greater.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

from deploy.demo.base import ensure_base
from deploy.demo.evaluate import draw_examples
from deploy.demo.jobs import Job, score_jobs
from deploy.demo.suite.two_skills import draw_two_skills
from deploy.demo.tasks import TASKS
from deploy.demo.twins import CONFIG
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation.arms import MixRequest, RequestFactory, make_request_factory
from tta_serve.evaluation.intervals import BootstrapEstimate, estimate_difference
from tta_serve.evaluation.local_server import serve_locally
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.scoring import score
from tta_serve.evaluation.server_client import ServerClient, run_all

SEED = 7
MIXES = ((0.5, 0.5), (1.0, 1.0), (1.0, 0.5))
"""The coefficients of the two experts that mixes are told."""
POLICIES: dict[str, dict[str, Any]] = {
    "mixed": {"type": "gate", "inline": True},
    "mixed, top 1": {"type": "gate", "inline": True, "options": {"top": 1}},
    "segments 0.2": {"type": "gate", "inline": True, "options": {"segments": 0.2, "top": 2}},
    "segments 0.5": {"type": "gate", "inline": True, "options": {"segments": 0.5, "top": 2}},
    "uniform": {"type": "static", "options": {"uniform": True}},
    "learned": {"type": "learned_static", "options": {"entry": "learned"}},
}
FIRST, SECOND = "first", "second"
IN_TURN = "one, then the other"
_MOST_TOKENS = 256


class MixingRow(NamedTuple):
    """How one way of answering does."""

    way: str
    two_skills: float
    """The mean graded score on requests of two skills."""
    over_best: BootstrapEstimate
    """How much of it is above the better expert's, the mean over pairs of tasks."""
    one_skill: float | None
    """The share of right answers to prompts of one skill, None where these have no such mix; beside
    the better expert stands the right one's."""


@dataclass(frozen=True)
class WayScores:
    """The scores of one way of answering."""

    two_skills: Mapping[str, list[float]]
    """Graded, by pair of tasks."""
    one_skill: float | None = None
    """As `MixingRow` has it."""


def measure_mixing(pairs: int, each: int, tell: Callable[[], None]) -> list[MixingRow]:
    """Serve the experts, and score all ways of answering.

    Args:
        pairs: Requests of each pair of tasks.
        each: Prompts of each task.
        tell: Called after each answer.
    """
    config = _make_config()
    with serve_locally(config) as (url, key):
        right = score_jobs(url, _list_jobs(each), tell)
        graded = asyncio.run(_ask_two_skills(url, key, config, draw_two_skills(pairs, SEED), tell))
    return compare_ways({way: WayScores(own, right.get(way)) for way, own in graded.items()})


def count_answers(pairs: int, each: int) -> int:
    """Return how many answers `measure_mixing` asks for."""
    two = len(draw_two_skills(pairs, SEED)) * (3 + len(MIXES) + len(POLICIES))
    return two + len(_list_jobs(each))


def _list_jobs(each: int) -> list[Job]:
    """List the prompts of one skill; the right expert's are counted under `FIRST`."""
    by_policy: dict[str, dict[str, Any]] = {
        name: {"model": "smollm2", "extra_body": {"merge": {"policy": name}}} for name in POLICIES
    }
    return [
        Job(way, request, task, example)
        for task in TASKS
        for way, request in ({FIRST: {"model": f"smollm2:{task}"}} | by_policy).items()
        for example in draw_examples(task, "test", each)
    ]


def _make_config() -> ServeConfig:
    overrides = {
        "model.source": str(ensure_base()),
        "policies": POLICIES,
        "default_policy": "mixed",
    }
    return load(CONFIG, overrides)


async def _ask_two_skills(
    url: str, key: str, config: ServeConfig, questions: list[Question], tell: Callable[[], None]
) -> dict[str, dict[str, list[float]]]:
    """Return the graded scores by way and pair of tasks."""
    requests = make_request_factory(config)
    async with ServerClient(url, key, requests) as server:

        async def answer(question: Question, asked: MixRequest) -> str:
            found = await server.answer(question.prompt, asked, _MOST_TOKENS)
            return str(found.choices[0].message.content)

        scored = {}
        for way, asked in _list_asked(requests, questions).items():
            jobs = [partial(answer, *pair) for pair in zip(questions, asked, strict=True)]
            scored[way] = _grade(questions, await run_all(jobs, tell))
    return scored


def _list_asked(
    requests: RequestFactory, questions: Sequence[Question]
) -> dict[str, list[MixRequest]]:
    """Return how each question is asked, by way."""
    asked = {
        FIRST: [requests.pin(q.tasks[0]) for q in questions],
        SECOND: [requests.pin(q.tasks[1]) for q in questions],
        IN_TURN: [
            requests.answer_in_segments([{name: 1.0} for name in q.tasks]) for q in questions
        ],
    }
    for mix in MIXES:
        asked[" + ".join(f"{c:g}" for c in mix)] = [
            requests.mix(dict(zip(q.tasks, mix, strict=True))) for q in questions
        ]
    for policy in POLICIES:
        asked[policy] = [MixRequest.make(requests.served, policy=policy)] * len(questions)
    return asked


def _grade(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for question, answer in zip(questions, answers, strict=True):
        assert question.task is not None
        assert question.want is not None
        graded = score(question.kind, question.want, question.parts, answer).graded
        found.setdefault(question.task, []).append(graded)
    return found


def compare_ways(scored: Mapping[str, WayScores]) -> list[MixingRow]:
    """Compare ways of answering with the better of two experts, which is the first row.

    Args:
        scored: By way; `first` and `second` are each pair's experts alone.
    """
    first, second = scored[FIRST], scored[SECOND]
    better = WayScores(
        {
            pair: max(own, second.two_skills[pair], key=mean)
            for pair, own in first.two_skills.items()
        },
        first.one_skill,
    )
    others = {way: own for way, own in scored.items() if way not in (FIRST, SECOND)}
    return [
        MixingRow(
            way,
            mean(value for own in scores.two_skills.values() for value in own),
            estimate_difference(
                [(own, better.two_skills[pair]) for pair, own in scores.two_skills.items()], SEED
            ),
            scores.one_skill,
        )
        for way, scores in {"the better expert": better, **others}.items()
    ]
