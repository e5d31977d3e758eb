"""MERGE^3: a few questions stand for all, by item response theory, and CMA-ES asks those alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize
from scipy.special import expit

from tta_serve.search.algorithms.cma_es import CmaEs
from tta_serve.search.searcher import (
    Algorithm,
    Array,
    Candidate,
    Generations,
    ScoredCandidate,
    SearchTask,
)

_ABILITIES = np.linspace(-8, 8, 321)
_PRIOR = 0.1  # the weight of normal priors, which keep few responses from extremes


@dataclass(frozen=True)
class ItemModel:
    """The two-parameter logistic model: p(right) = sigma(a_j (theta_i - b_j))."""

    slopes: Array
    """log a, by question."""
    difficulties: Array
    """b, by question."""

    @classmethod
    def fit(cls, responses: Array) -> ItemModel:
        """Fit questions and abilities at once, by penalised likelihood.

        Args:
            responses: Scores from 0 to 1, [candidates, questions].
        """
        rows, columns = responses.shape

        def loss(values: Array) -> tuple[float, Array]:
            theta, slopes, difficulties = np.split(values, [rows, rows + columns])
            away = theta[:, None] - difficulties
            logits = np.exp(slopes) * away
            fit = (np.logaddexp(0, logits) - responses * logits).sum()
            rest = expit(logits) - responses
            pull = rest * np.exp(slopes)
            gradient = np.concatenate([pull.sum(1), (pull * away).sum(0), -pull.sum(0)])
            return float(fit + _PRIOR * (values**2).sum()), gradient + 2 * _PRIOR * values

        found = minimize(loss, np.zeros(rows + 2 * columns), jac=True, method="L-BFGS-B").x
        return cls(found[rows : rows + columns], found[rows + columns :])

    def choose(self, count: int, seed: int) -> tuple[int, ...]:
        """Return the questions nearest to the centres of so many clusters of all."""
        features = np.stack([self.slopes, self.difficulties], 1)
        features = (features - features.mean(0)) / (features.std(0) + 1e-9)
        centres, _ = kmeans2(
            features,
            min(count, len(features)),
            minit="++",
            rng=np.random.default_rng(seed),
            missing="warn",
        )
        distances = ((features[:, None] - centres) ** 2).sum(-1)
        chosen: list[int] = []
        for column in distances.T:
            free = [number for number in np.argsort(column, kind="stable") if number not in chosen]
            chosen.append(int(free[0]))
        return tuple(sorted(chosen))

    def predict(self, asked: Sequence[int], scores: Array) -> Array:
        """Return what is expected of all questions, from the scores of some."""
        slopes, difficulties = np.exp(self.slopes), self.difficulties
        own = list(asked)

        logits = slopes[own] * (_ABILITIES[:, None] - difficulties[own])
        fit = (np.logaddexp(0, logits) - scores * logits).sum(1) + _PRIOR * _ABILITIES**2
        theta = _ABILITIES[fit.argmin()]
        return np.asarray(expit(slopes * (theta - difficulties)))


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class ResponseTheory(Algorithm):
    """CMA-ES on a subset of the questions that item response theory chooses.

    What is known and some random candidates are asked all questions, a two-parameter model is
    fitted to that, and the questions nearest to the centres of its clusters stand for all. The
    score of a candidate is then the mean of what it scored and of what its ability lets expect of
    the other questions. The best of every few generations is asked all. Scores lie from 0 to 1.
    """

    source: ClassVar[str] = (
        "Mencattini et al. 2025, arXiv 2502.10436 (MERGE^3); Polo et al. 2024, arXiv 2402.14992"
        " (tinyBenchmarks)"
    )

    calibration: Annotated[int, Field(ge=0)] = 16
    """Random candidates that are asked all questions at first."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The share of the questions that stand for all; four at least."""
    check: Annotated[int, Field(ge=1)] = 3
    """After so many generations the best of them is asked all questions."""

    def generate(self, task: SearchTask) -> Generations:
        """Yield what calibrates, then generations of CMA-ES on the subset."""
        rng, space = np.random.default_rng(task.seed), task.space
        drawn = [
            space.settle(
                (rng.random(space.size) < 0.6) * rng.uniform(space.low, space.high, space.size)
            )
            for _ in range(self.calibration)
        ]
        responses = [*task.known, *((yield [Candidate(point) for point in drawn]) if drawn else ())]
        model = ItemModel.fit(np.clip(np.stack([one.values for one in responses]), 0, 1))
        asked = model.choose(max(4, round(self.share * len(task.groups))), task.seed)

        inner, generation = CmaEs().generate(task), 0
        candidates, hopeful = next(inner), list[ScoredCandidate]()
        while True:
            scored = yield [Candidate(one.point, asked) for one in candidates]
            estimated = [_estimate(one, model) for one in scored]
            hopeful.append(max(estimated, key=lambda one: one.mean))
            generation += 1
            if generation % self.check == 0:
                yield [Candidate(max(hopeful, key=lambda one: one.mean).point)]
                hopeful = []
            try:
                candidates = inner.send(estimated)
            except StopIteration:
                return


def _estimate(scored: ScoredCandidate, model: ItemModel) -> ScoredCandidate:
    """Return a candidate with scores of all questions: its own, and what is expected of it."""
    asked = sorted(scored.scores)
    expected = model.predict(asked, np.clip(scored.values, 0, 1))
    scores = dict(enumerate(expected.tolist())) | dict(scored.scores)
    return ScoredCandidate(Candidate(scored.point), scores)
