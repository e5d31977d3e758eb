"""Which requests the demo's default policy answers in segments: `python -m deploy.demo segments`.

The gate decides here as the pass does, of what plain transformers read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import NamedTuple

import yaml

from adapters.library.library import Library
from adapters.mix import MixRules
from deploy.demo.base import ensure_base
from deploy.demo.evaluate import draw_examples
from deploy.demo.model import EXPERTS
from deploy.demo.suite.two_skills import draw_two_skills
from deploy.demo.tasks import TASKS
from deploy.demo.twins import CONFIG
from deploy.demo.voices import TEST, read_spoken_voices
from router.decision import Decision, Prompt
from router.policies.gate import GatePolicy
from router.policy import Context
from tta_serve.offline.features_probe import FeaturesProbe

SEED = 5


class SegmentsReport(NamedTuple):
    """How many requests are answered in segments."""

    both_found: float
    """Of requests for two skills, those that their two experts answer, and nobody else."""
    test_answered_twice: float
    """Of test prompts of one skill, those that two experts answer."""
    strangers_answered_twice: float
    """The same of what the voices of `test` ask, everyday prompts included."""


def measure_segments(
    pairs: int, each: int, watch: Callable[[list[str]], Iterable[str]]
) -> SegmentsReport:
    """Let the default policy decide.

    Args:
        pairs: Requests of each pair of tasks.
        each: Test prompts of each task.
        watch: Hands prompts on, for a progress bar.
    """
    asked = draw_two_skills(pairs, SEED)
    drawn = [example for task in TASKS for example in draw_examples(task, "test", each)]
    spoken = [one for voice in read_spoken_voices(TEST).values() for one in voice]
    both, test, strangers = asyncio.run(
        _decide_all([[one.prompt for one in own] for own in (asked, drawn, spoken)], watch)
    )
    return SegmentsReport(
        mean(_list_experts(d) == set(q.tasks) for d, q in zip(both, asked, strict=True)),
        mean(bool(decision.then) for decision in test),
        mean(bool(decision.then) for decision in strangers),
    )


async def _decide_all(
    groups: Sequence[list[str]], watch: Callable[[list[str]], Iterable[str]]
) -> list[list[Decision]]:
    """Return what the default policy decides for each prompt, group by group."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    options = config["policies"][config["default_policy"]]["options"]
    library = Library.open(EXPERTS)
    probe = FeaturesProbe(ensure_base())
    context = Context(
        MixRules(frozenset(library.classes), probe.layers),
        examples={},
        everyday=[],
        probe=probe,
        digests=library.digests,
        artifacts=EXPERTS / "router",
        inline=True,
    )
    policy = await GatePolicy.create(GatePolicy.Options(**options), context)
    return [[await policy.route(Prompt(text), probe) for text in watch(own)] for own in groups]


def _list_experts(decision: Decision) -> set[str]:
    return {name for mix in (decision.mix, *decision.then) for name in mix.as_dict()}
