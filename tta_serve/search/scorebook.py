"""Scores of candidates: each mix is asked each question once, many at a time."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from adapters.coefficient import Json
from router.probing import gather_all
from tta_serve.search.journal import Scores, SearchJournal
from tta_serve.search.searcher import Candidate, ScoredCandidate
from tta_serve.search.space import SearchSpace

Pair = tuple[str, int]
"""A mix as JSON, and the number of a question."""
Ask = Callable[[int, Mapping[str, Json]], Awaitable[float]]
"""Returns what the answer of a mix to a question is worth."""


@dataclass(frozen=True)
class Budget:
    """What a search may take."""

    requests: int | None = None
    """How many questions it may ask; None for any number."""
    seconds: float | None = None
    """How long it may run; None for as long as it takes."""


@dataclass
class Scorebook:
    """The scores of a search, which are asked for once and kept in its journal."""

    space: SearchSpace
    """Says which mix a point is."""
    questions: int
    """How many questions there are."""
    ask: Ask
    """What scores one of them."""
    at_once: int
    """How many are under way at a time."""
    journal: SearchJournal
    """Where scores are kept."""
    budget: Budget = Budget()
    """When to stop."""
    tell: Callable[[], None] = lambda: None
    """Is called for each question that is scored."""
    requests: int = 0
    """How many questions were asked, in this run or by the journal."""
    _scores: Scores = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the search has run, earlier runs too."""
        return self.journal.seconds + time.monotonic() - self._began

    @property
    def mixes(self) -> int:
        """How many different mixes were scored."""
        return len({mix for mix, _ in self._scores})

    async def score(self, candidates: Sequence[Candidate]) -> list[ScoredCandidate]:
        """Score candidates, in order.

        Returns:
            The first ones, as far as the budget goes.
        """
        wanted = [(candidate, self._list_pairs(candidate)) for candidate in candidates]
        await self._ask_new(self._afford([pairs for _, pairs in wanted]))
        found = []
        for candidate, pairs in wanted:
            if not all(pair in self._scores for pair in pairs):
                break
            scores = {number: self._scores[mix, number] for mix, number in pairs}
            found.append(ScoredCandidate(candidate, scores))
        return found

    def _list_pairs(self, candidate: Candidate) -> list[Pair]:
        mix = json.dumps(self.space.read(candidate.point).as_json(), sort_keys=True)
        numbers = candidate.questions
        return [(mix, n) for n in (range(self.questions) if numbers is None else numbers)]

    def _afford(self, wanted: Sequence[Sequence[Pair]]) -> list[Pair]:
        """Return what was not asked yet of the first candidates that the budget has room for."""
        found = dict[Pair, None]()
        for pairs in wanted:
            new = [pair for pair in pairs if pair not in self._scores and pair not in found]
            limit = self.budget.requests
            if limit is not None and self.requests + len(found) + len(new) > limit:
                break
            found |= dict.fromkeys(new)
        return list(found)

    async def _ask_new(self, pairs: Sequence[Pair]) -> None:
        """Score what is new, by the journal or by asking; a mix is written down once it is done."""
        left = Counter[str]()
        for pair in pairs:
            if pair in self.journal.known:
                self._take(pair, self.journal.known[pair])
            else:
                left[pair[0]] += 1
        done = defaultdict[str, dict[int, float]](dict)

        async def ask(pair: Pair) -> None:
            mix, number = pair
            if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
                return
            done[mix][number] = await self.ask(number, json.loads(mix))
            if len(done[mix]) == left[mix]:
                self.journal.add(mix, done[mix], self.seconds)
                for own, score in done[mix].items():
                    self._take((mix, own), score)

        await gather_all(ask, [pair for pair in pairs if pair not in self._scores], self.at_once)

    def _take(self, pair: Pair, score: float) -> None:
        self._scores[pair] = score
        self.requests += 1
        self.tell()
