"""Whether a mix is worth more than the better of its experts: `python -m deploy.demo mixing`.

Requests of two skills are asked of each expert that they are for, and of mixes of the two that are
told to the server; those and prompts of one skill also of policies that decide alone. The better
expert of a pair of tasks is the one whose mean over the pair's requests is the greater.
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

SEED = 5
MIXES = ((0.5, 0.5), (0.7, 0.7), (1.0, 1.0), (1.0, 0.5), (0.5, 1.0))
"""The coefficients of the two experts that mixes are told."""
POLICIES: dict[str, dict[str, Any]] = {
    "inline": {"type": "gate", "inline": True},
    "inline-top1": {"type": "gate", "inline": True, "options": {"top": 1}},
    "uniform": {"type": "static", "options": {"uniform": True}},
    "task-arithmetic": {"type": "static", "options": {"task_arithmetic": 0.4}},
    "learned": {"type": "learned_static", "options": {"entry": "learned"}},
}
FIRST, SECOND = "first", "second"
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


@dataclass(frozen=True)
class _Drawn:
    """What is asked."""

    two_skills: list[Question]
    one_skill: list[Question]

    @classmethod
    def of(cls, pairs: int, each: int) -> _Drawn:
        one = [
            Question("mixed", e.prompt, e.answer, task)
            for task in TASKS
            for e in draw_examples(task, "test", each)
        ]
        return cls(draw_two_skills(pairs, SEED), one)


def measure_mixing(pairs: int, each: int, tell: Callable[[], None]) -> list[MixingRow]:
    """Serve the experts, and score all ways of answering.

    Args:
        pairs: Requests of each pair of tasks.
        each: Prompts of each task.
        tell: Called after each answer.
    """
    config = _make_config()
    drawn = _Drawn.of(pairs, each)
    with serve_locally(config) as access:
        scored = asyncio.run(_ask_all(access, config, drawn, tell))
    return compare_ways(scored)


def count_answers(pairs: int, each: int) -> int:
    """Return how many answers `measure_mixing` asks for."""
    drawn = _Drawn.of(pairs, each)
    two = len(drawn.two_skills) * (2 + len(MIXES) + len(POLICIES))
    return two + len(drawn.one_skill) * (1 + len(POLICIES))


def _make_config() -> ServeConfig:
    overrides = {
        "model.source": str(ensure_base()),
        "policies": POLICIES,
        "default_policy": "inline",
    }
    return load(CONFIG, overrides)


async def _ask_all(
    access: tuple[str, str], config: ServeConfig, drawn: _Drawn, tell: Callable[[], None]
) -> dict[str, WayScores]:
    """Return the scores by way, among them of the first and of the second expert."""
    requests = make_request_factory(config)
    async with ServerClient(*access, requests) as server:

        async def answer(questions: Sequence[Question], asked: Sequence[MixRequest]) -> list[str]:
            async def get(question: Question, mix: MixRequest) -> str:
                found = await server.answer(question.prompt, mix, _MOST_TOKENS)
                return str(found.choices[0].message.content)

            jobs = [partial(get, *pair) for pair in zip(questions, asked, strict=True)]
            return await run_all(jobs, tell)

        one, two = drawn.one_skill, drawn.two_skills
        right = _count_right(one, await answer(one, [requests.pin(q.tasks[0]) for q in one]))
        scored = {}
        for way, asked in _list_told(requests, two).items():
            graded = _grade(two, await answer(two, asked))
            scored[way] = WayScores(graded, right if way == FIRST else None)
        for policy in POLICIES:
            decided = MixRequest.make(requests.served, policy=policy)
            scored[policy] = WayScores(
                _grade(two, await answer(two, [decided] * len(two))),
                _count_right(one, await answer(one, [decided] * len(one))),
            )
    return scored


def _list_told(
    requests: RequestFactory, questions: Sequence[Question]
) -> dict[str, list[MixRequest]]:
    """Return what the server is told of each question, by way."""
    told = {
        FIRST: [requests.pin(q.tasks[0]) for q in questions],
        SECOND: [requests.pin(q.tasks[1]) for q in questions],
    }
    for mix in MIXES:
        told[" + ".join(f"{c:g}" for c in mix)] = [
            requests.mix(dict(zip(q.tasks, mix, strict=True))) for q in questions
        ]
    return told


def _grade(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for question, answer in zip(questions, answers, strict=True):
        assert question.task is not None
        assert question.want is not None
        graded = score(question.kind, question.want, question.parts, answer).graded
        found.setdefault(question.task, []).append(graded)
    return found


def _count_right(questions: Sequence[Question], answers: Sequence[str]) -> float:
    return mean(
        TASKS[question.tasks[0]].is_right(answer, question.want or "")
        for question, answer in zip(questions, answers, strict=True)
    )


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
