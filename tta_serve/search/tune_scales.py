"""The best of each method's static merges, and its scale: a coefficient of its expert.

Both are tuned on questions.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from adapters.coefficient import Json
from adapters.mix import MixRules
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation.arms import HIGHEST_SCALE
from tta_serve.evaluation.merge_variants import MergeVariant, TunedMerge
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.server_client import AT_ONCE, ServerClient, Step
from tta_serve.search.algorithms.halving import spread_questions
from tta_serve.search.journal import SearchJournal
from tta_serve.search.objectives import AnswerObjective, measure_graded
from tta_serve.search.scorebook import Scorebook
from tta_serve.search.search_job import limit_answers
from tta_serve.search.searcher import Candidate, ScoredCandidate, choose_best, list_best
from tta_serve.search.space import Point, SearchSpace

SCALES = (0.5, 1.0, 2.0, 4.0)
"""The scales that every merge is asked at first."""
FINALISTS = 2
"""How many merges or scales of a method are asked all questions."""
NEAR = (0.7, 1.4)
"""By how much the scale of the best of them is multiplied then."""


async def tune_scales(
    server: ServerClient,
    config: ServeConfig,
    variants: Sequence[MergeVariant],
    step: Step,
    questions: Sequence[Question],
) -> list[TunedMerge]:
    """Return of each method the merge and the scale whose graded score is the greatest.

    All merges and scales are rows of the same batches. First each merge is asked a third of the
    questions at each of `SCALES`; then the two best merges or scales of each method are asked all
    of them, and then the better one near its scale.

    Args:
        server: A server of the merges.
        config: Its config.
        variants: The merges, several of a method that is tried with several densities.
        step: Shows how far it is.
        questions: With wanted answers; none that anything is judged by later.
    """
    limits = await limit_answers(None, questions, server)
    objective = AnswerObjective(server, measure_graded, limits)

    async def ask(number: int, mix: Mapping[str, Json]) -> float:
        return await objective.score(questions[number], server.requests.mix(mix))

    space = _make_space(config, variants)
    methods = defaultdict[str, list[int]](list)
    for k, variant in enumerate(variants):
        methods[variant.method].append(k)
    order = spread_questions([str(q.task) for q in questions], np.random.default_rng(0))
    few = order[: math.ceil(len(order) / 3)]

    asked = len(variants) * len(SCALES) * len(few) + len(methods) * (
        FINALISTS * (len(order) - len(few)) + len(NEAR) * len(order)
    )
    with tempfile.TemporaryDirectory(prefix="tta-tune-") as folder:
        journal = SearchJournal.open(Path(folder), {})
        tell = step("tune merges", asked)
        book = Scorebook(space, len(order), ask, AT_ONCE, journal, tell=tell)
        first = await _score_each(
            book,
            [
                [space.isolate(k, scale) for k in own for scale in SCALES]
                for own in methods.values()
            ],
            few,
        )
        finals = await _score_each(book, [list_best(own, FINALISTS) for own in first])
        best = [choose_best(own) for own in finals]
        near = await _score_each(book, [_list_near(space, one.point) for one in best])
    chosen = [choose_best([one, *more]).point for one, more in zip(best, near, strict=True)]
    return [TunedMerge(variants[k], scale) for k, scale in map(_find_scale, chosen)]


def _find_scale(point: Point) -> tuple[int, float]:
    """Return the number of the one merge that a point has, and its scale."""
    [found] = [(k, scale) for k, scale in enumerate(point) if scale]
    return found


def _list_near(space: SearchSpace, point: Point) -> list[Point]:
    k, scale = _find_scale(point)
    return [space.isolate(k, factor * scale) for factor in NEAR]


def _make_space(config: ServeConfig, variants: Sequence[MergeVariant]) -> SearchSpace:
    names = tuple(variant.expert for variant in variants)
    mix = config.mix
    rules = MixRules(frozenset(names), 1, mix.grid, mix.max_experts, mix.minimum, mix.maximum)
    return SearchSpace(names, rules, low=0.0, high=HIGHEST_SCALE)


async def _score_each(
    book: Scorebook, points: Sequence[Sequence[Point]], questions: tuple[int, ...] | None = None
) -> list[list[ScoredCandidate]]:
    """Score the points of every method, all at a time."""
    asked = [Candidate(point, questions) for own in points for point in own]
    scored = iter(await book.score(asked))
    return [[next(scored) for _ in own] for own in points]
