"""The loop of a search: its budget, its end, and how it goes on."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters.coefficient import Json
from loadtest.common.known_optimum import BATCH, QUESTIONS, make_space, score
from tests.factories.search_parts import open_book, run
from tta_serve.search.algorithms.cma_es import CmaEs
from tta_serve.search.algorithms.frank_wolfe import FrankWolfe
from tta_serve.search.errors import SearchError
from tta_serve.search.journal import FILE, SearchJournal
from tta_serve.search.scorebook import Budget
from tta_serve.search.searcher import Candidate

KNOWN = 5  # the base, three experts, all of them


@pytest.mark.parametrize("requests", [KNOWN * QUESTIONS, 61, 400])
def test_a_search_asks_no_more_than_its_budget(tmp_path: Path, requests: int) -> None:
    book = open_book(tmp_path, make_space(), Budget(requests))
    found = run(CmaEs(), book)
    assert found.ended == "budget"
    assert requests - QUESTIONS < book.requests <= requests


def test_a_budget_that_does_not_reach_for_what_is_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="that is 60 requests"):
        run(CmaEs(), open_book(tmp_path, make_space(), Budget(59)))


def test_a_search_ends_when_its_time_is_over(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space(), Budget(seconds=3600))

    async def ask(number: int, mix: Mapping[str, Json]) -> float:
        if book.requests >= 100:
            book.journal.seconds = 3600
        return await score(number, mix)

    book.ask = ask
    assert run(CmaEs(), book).ended == "budget"
    assert 100 <= book.requests < 100 + 2 * BATCH


def test_a_search_ends_when_nothing_is_better_for_a_while(tmp_path: Path) -> None:
    found = run(CmaEs(), open_book(tmp_path, make_space()), patience=6)
    assert found.ended == "patience"
    bests = [row.best for row in found.history]
    assert bests[-7] == bests[-1] > bests[0]


@pytest.mark.parametrize("cut", [0, 7], ids=["after a row", "within a row"])
def test_a_search_goes_on_where_it_was_ended_and_finds_the_same(tmp_path: Path, cut: int) -> None:
    whole = run(CmaEs(), open_book(tmp_path / "whole", make_space(), Budget(600)))

    run(CmaEs(), open_book(tmp_path / "cut", make_space(), Budget(311)))
    file = tmp_path / "cut" / FILE
    text = file.read_bytes()
    file.write_bytes(text[: len(text) - cut])
    book = open_book(tmp_path / "cut", make_space(), Budget(600))
    known = len(book.journal.known)
    again = run(CmaEs(), book)

    assert again.history == whole.history
    assert again.scored == whole.scored
    assert known >= 288
    assert len(file.read_text(encoding="utf-8").splitlines()) == len(
        (tmp_path / "whole" / FILE).read_text(encoding="utf-8").splitlines()
    )


def test_a_mix_is_asked_a_question_once(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space())
    asked = []

    async def ask(number: int, mix: object) -> float:
        asked.append((number, str(mix)))
        return 0.5

    book.ask = ask
    point = book.space.isolate(0)
    twice = [Candidate(point, (1, 2)), Candidate(point), Candidate(point, (3,))]
    found = asyncio.run(book.score(twice))
    assert len(asked) == len(set(asked)) == book.requests == QUESTIONS
    assert [len(one.scores) for one in found] == [2, QUESTIONS, 1]


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    SearchJournal.open(tmp_path, {"seed": 0, "algorithm": "cma_es"})
    with pytest.raises(SearchError, match="whose seed was another"):
        SearchJournal.open(tmp_path, {"seed": 1, "algorithm": "cma_es"})
    (tmp_path / FILE).write_text("no JSON\n", encoding="utf-8")
    with pytest.raises(SearchError, match="no journal"):
        SearchJournal.open(tmp_path, {"seed": 0})


def test_what_is_known_needs_no_request_of_its_own_again(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space())
    found = run(FrankWolfe(steps=1, line=1), book)
    assert found.history[0].requests == KNOWN * QUESTIONS
    assert book.mixes * QUESTIONS == book.requests
