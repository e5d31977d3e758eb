"""The best of each method's static merges, and its scale: a coefficient of its expert.

Both are tuned on questions.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapters.coefficient import Json
from adapters.mix import MixRules
from tta_serve.config.sections import ServeConfig
from tta_serve.evaluation.arms import HIGHEST_SCALE
from tta_serve.evaluation.merge_variants import MergeVariant, TunedMerge
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.server_client import AT_ONCE, ServerClient, Step
from tta_serve.search.journal import SearchJournal
from tta_serve.search.objectives import AnswerObjective, measure_graded
from tta_serve.search.scorebook import Scorebook
from tta_serve.search.search_job import limit_answers
from tta_serve.search.searcher import Candidate, ScoredCandidate, choose_best
from tta_serve.search.space import SearchSpace

SCALES = (0.5, 1.0, 2.0, 4.0)
"""The scales that every merge is asked at first."""
NEAR = (0.7, 1.4)
"""By how much the best of them is multiplied then."""


async def tune_scales(
    server: ServerClient,
    config: ServeConfig,
    variants: Sequence[MergeVariant],
    step: Step,
    questions: Sequence[Question],
) -> list[TunedMerge]:
    """Return of each method the merge and the scale whose graded score is the greatest.

    All merges and scales are rows of the same batches. First each of `SCALES` is asked, then what
    is near the best of them, of every merge alike.

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
    asked = len(variants) * len(questions) * (len(SCALES) + len(NEAR))
    with tempfile.TemporaryDirectory(prefix="tta-tune-") as folder:
        journal = SearchJournal.open(Path(folder), {})
        tell = step("tune merges", asked)
        book = Scorebook(space, len(questions), ask, AT_ONCE, journal, tell=tell)
        first = await _score(book, [SCALES] * len(variants))
        best = [choose_best(own) for own in first]
        near = [tuple(factor * one.point[k] for factor in NEAR) for k, one in enumerate(best)]
        second = await _score(book, near)
    chosen = [choose_best([one, *more]) for one, more in zip(best, second, strict=True)]
    return _choose_variants(variants, chosen)


def _choose_variants(
    variants: Sequence[MergeVariant], scored: Sequence[ScoredCandidate]
) -> list[TunedMerge]:
    """Return the best variant of each method, with its scale; of equal ones the first.

    Args:
        variants: All of them.
        scored: Each one's best scale.
    """
    numbers = defaultdict[str, list[int]](list)
    for k, variant in enumerate(variants):
        numbers[variant.method].append(k)
    best = [max(own, key=lambda k: round(scored[k].mean, 12)) for own in numbers.values()]
    return [TunedMerge(variants[k], scored[k].point[k]) for k in best]


def _make_space(config: ServeConfig, variants: Sequence[MergeVariant]) -> SearchSpace:
    names = tuple(variant.expert for variant in variants)
    mix = config.mix
    rules = MixRules(frozenset(names), 1, mix.grid, mix.max_experts, mix.minimum, mix.maximum)
    return SearchSpace(names, rules, low=0.0, high=HIGHEST_SCALE)


async def _score(book: Scorebook, scales: Sequence[Sequence[float]]) -> list[list[ScoredCandidate]]:
    """Score every merge alone at its scales."""
    asked = [
        Candidate(book.space.isolate(k, scale)) for k, own in enumerate(scales) for scale in own
    ]
    scored = iter(await book.score(asked))
    return [[next(scored) for _ in own] for own in scales]
