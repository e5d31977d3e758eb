"""One search, from a server's address to what was found and how it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from adapters.coefficient import Json
from router.probing import gather_all
from tta_serve.evaluation.arms import MixRequest
from tta_serve.evaluation.plan import limit_tokens
from tta_serve.evaluation.questions import Question, Suite
from tta_serve.evaluation.server_client import ServerClient
from tta_serve.search.errors import SearchError
from tta_serve.search.holdout import FOUND, HeldOutRow, compare_arms
from tta_serve.search.journal import SearchJournal
from tta_serve.search.objectives import (
    AnswerObjective,
    Measure,
    Objective,
    ReferenceObjective,
    check_wanted,
    measure_exact,
    measure_graded,
)
from tta_serve.search.scorebook import Budget, Scorebook
from tta_serve.search.search_loop import SearchRun, search
from tta_serve.search.searcher import Algorithm, SearchTask
from tta_serve.search.server_facts import ServerFacts
from tta_serve.search.space import SearchSpace, name_settings
from tta_serve.search.split import QuestionSplit, name_group

MEASURES: Mapping[str, Measure] = {"graded": measure_graded, "exact": measure_exact}
"""The measures that compare with the wanted answer, by the objective's name."""
REFERENCE = "logprob"
"""The name of the objective that reads the wanted answer."""


@dataclass(frozen=True)
class SearchSettings:
    """What is searched, and how."""

    space: SearchSpace
    """Where."""
    split: QuestionSplit
    """By which questions."""
    objective: str
    """The name of what is searched for."""
    measure: Measure | None
    """What an answer is worth; None for log-probabilities of the wanted answer."""
    algorithm_name: str
    """The algorithm's name."""
    algorithm: Algorithm
    """What proposes candidates."""
    out: Path
    """The folder of the journal."""
    budget: Budget
    """When to stop."""
    patience: int | None
    """After how many batches without anything better to stop."""
    seed: int
    """Of all that is random."""
    acts_from: str | None = None
    """Where mixes begin to act; None for where the server has it."""
    tokens: int | None = None
    """The most tokens of an answer; None for what the wanted answers have."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else makes two searches the same, such as the judge."""

    def identify(self, facts: ServerFacts) -> dict[str, Any]:
        """Return what makes two searches the same, for the journal."""
        return {
            "space": name_settings(self.space),
            "digests": {name: facts.digests[name] for name in self.space.experts},
            "model": facts.requests.served,
            "questions": [[q.prompt, q.want, q.kind] for q in self.split.searched],
            "objective": self.objective,
            "algorithm": {"name": self.algorithm_name, **asdict(self.algorithm)},
            "batch": facts.slots,
            "seed": self.seed,
            "acts_from": self.acts_from,
            "tokens": self.tokens,
            **self.about,
        }


@dataclass(frozen=True)
class SearchOutcome:
    """What a search has come to."""

    run: SearchRun
    """What it has found."""
    rows: list[HeldOutRow]
    """How that compares on questions that were held out."""
    requests: int
    """How many questions it asked."""
    mixes: int
    """How many different mixes it scored."""
    seconds: float
    """How long it ran, earlier runs too."""
    fresh: tuple[int, float]
    """How many questions this run asked, and how long that took."""


async def run_search(
    settings: SearchSettings,
    facts: ServerFacts,
    server: ServerClient,
    tell: Callable[[], None] = lambda: None,
) -> SearchOutcome:
    """Search, and compare what was found on the questions that were held out.

    Args:
        settings: What is searched, and how.
        facts: What the server serves.
        server: The server.
        tell: Is called for each question that is scored.

    Raises:
        SearchError: The settings do not fit the journal or the budget, or the server fails.
    """
    try:
        return await _run_search(settings, facts, server, tell)
    except openai.APIStatusError as error:
        raise SearchError(
            f"the server refused a question, status {error.status_code}: {error.message}; what was"
            f" scored until then is in {settings.out}, and the same command goes on from there"
        ) from None
    except (openai.APIError, httpx.HTTPError) as error:
        raise SearchError(
            f"the server does not answer any more ({error}); what was scored until then is in"
            f" {settings.out}, and the same command goes on from there"
        ) from None


async def _run_search(
    settings: SearchSettings,
    facts: ServerFacts,
    server: ServerClient,
    tell: Callable[[], None],
) -> SearchOutcome:
    split, space = settings.split, settings.space
    objective = await _make_objective(settings, server)
    make_request = _RequestMaker(server, settings.acts_from)

    async def ask(number: int, mix: Mapping[str, Json]) -> float:
        return await objective.score(split.searched[number], make_request.mix(mix))

    journal = SearchJournal.open(settings.out, settings.identify(facts))
    book = Scorebook(space, len(split.searched), ask, facts.slots, journal, settings.budget, tell)
    groups = tuple(map(name_group, split.searched))
    run = await search(
        settings.algorithm,
        lambda known: SearchTask(space, groups, known, facts.slots, settings.seed),
        book,
        facts.slots,
        settings.patience,
    )
    seconds = book.seconds

    async def check(number: int, asked: MixRequest) -> float:
        return await objective.score(split.held_out[number], asked)

    arms = _list_rivals(make_request, space, run, facts)
    rows = await compare_arms(arms, len(split.held_out), check, facts.slots, settings.seed)
    fresh = book.requests - len(journal.known), seconds - journal.seconds
    return SearchOutcome(run, rows, book.requests, book.mixes, seconds, fresh)


@dataclass(frozen=True)
class _RequestMaker:
    """Makes requests for mixes that begin to act where the user wants."""

    server: ServerClient
    acts_from: str | None

    def mix(self, experts: Mapping[str, Json]) -> MixRequest:
        """Return the request for a mix."""
        found = self.server.requests.mix(experts)
        if self.acts_from is None or not experts:
            return found
        return MixRequest.make(found.model, experts=dict(experts), acts_from=self.acts_from)


def _list_rivals(
    make_request: _RequestMaker, space: SearchSpace, run: SearchRun, facts: ServerFacts
) -> dict[str, MixRequest]:
    """Return how what was found, what is known and the default policy are asked."""
    points = {FOUND: run.best.point, **space.list_known()}
    arms = {name: make_request.mix(space.read(point).as_json()) for name, point in points.items()}
    return arms | {f"policy {facts.default_policy}": MixRequest(facts.requests.served)}


async def _make_objective(settings: SearchSettings, server: ServerClient) -> Objective:
    questions = [*settings.split.searched, *settings.split.held_out]
    if settings.objective in (*MEASURES, REFERENCE):
        check_wanted(questions)
    if settings.measure is None:
        return ReferenceObjective(server)
    limits = await limit_answers(settings.tokens, questions, server)
    return AnswerObjective(server, settings.measure, limits)


async def limit_answers(
    most: int | None, questions: Sequence[Question], server: ServerClient
) -> dict[Question, int]:
    """Return the most tokens of an answer to each question, by those that are wanted."""
    if most is not None:
        return dict.fromkeys(questions, most)
    if any(question.want is None for question in questions):
        raise SearchError(
            "say with --answer how many tokens an answer may have, as some questions want none"
        )
    texts = sorted({str(question.want) for question in questions})
    tokens = await gather_all(
        lambda text: server.tokenize(prompt=text, add_special_tokens=False), texts
    )
    counts = {text: len(own) for text, own in zip(texts, tokens, strict=True)}
    limits = limit_tokens(Suite(tuple(questions)), lambda text: counts[text])
    return dict(zip(questions, limits, strict=True))
