"""A whole search, on a server that answers by hand."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from adapters.errors import LibraryError
from adapters.library.entries import ENTRIES, read_entries
from router.policies.pareto import read_front
from tta_serve.evaluation.arms import MixRequest
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.server_client import ServerClient
from tta_serve.search import report
from tta_serve.search.algorithms.registry import make_algorithm
from tta_serve.search.errors import SearchError
from tta_serve.search.front_store import check_front, measure_volume, store_front
from tta_serve.search.objectives import measure_graded
from tta_serve.search.scorebook import Budget
from tta_serve.search.search_job import SearchOutcome, SearchSettings, run_search
from tta_serve.search.searcher import Candidate
from tta_serve.search.server_facts import ServerFacts
from tta_serve.search.space import SearchSpace
from tta_serve.search.split import split_questions

FACTS = ServerFacts(
    {
        "model": {"id": "m", "source": "/nowhere"},
        "mix": {"grid": 0.05, "max_experts": 2, "minimum": -2.0, "maximum": 2.0},
        "server": {"slots": 4, "replicas": 2},
        "default_policy": "gate",
        "library": {"path": "/library"},
    },
    {"dates": "d1", "sql": "d2"},
)
WANTED = {"dates": 0.4, "sql": 0.7}
ASKED = [
    Question("search", f"{task} {n}", "a b c d e f g h i j", task, kind="tokens")
    for task in WANTED
    for n in range(6)
]


class ByHand(ServerClient):
    """Says one letter less of ten for each 0.1 that a mix is off, for the prompt's task most."""

    def __init__(self, fails_after: int | None = None) -> None:
        super().__init__("http://127.0.0.1:1", "key", FACTS.requests)
        self.asked: list[MixRequest] = []
        self.at_once = 0
        self.most_at_once = 0
        self._fails_after = fails_after

    async def answer(self, prompt: str, asked: MixRequest, most: int, **more: Any) -> Any:
        assert most == 14
        self.asked.append(asked)
        if self._fails_after is not None and len(self.asked) > self._fails_after:
            raise httpx.ConnectError("gone")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        experts: Any = {} if asked == MixRequest("m") else asked.list_segments()[0]
        task = prompt.split(maxsplit=1)[0]
        off = sum(
            abs(experts.get(name, 0) - value) * (1 if name == task else 0.3)
            for name, value in WANTED.items()
        )
        letters = "abcdefghij"[: max(0, 10 - round(off * 10))]
        message = SimpleNamespace(content=" ".join(letters))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    async def tokenize(self, **text: Any) -> list[int]:
        return list(range(len(text["prompt"].split())))


def make_settings(out: Path, algorithm: str = "cma_es", **more: Any) -> SearchSettings:
    return replace(
        SearchSettings(
            space=SearchSpace(("dates", "sql"), FACTS.make_rules(4)),
            split=split_questions(ASKED, 0.5, 0),
            objective="graded",
            measure=measure_graded,
            algorithm_name=algorithm,
            algorithm=make_algorithm(algorithm, {}),
            out=out,
            budget=Budget(400),
            patience=None,
            seed=0,
        ),
        **more,
    )


def run(settings: SearchSettings, server: ByHand) -> SearchOutcome:
    async def search() -> SearchOutcome:
        async with server:
            return await run_search(settings, FACTS, server)

    return asyncio.run(search())


def test_what_is_found_is_compared_on_what_was_held_out_and_stored(tmp_path: Path) -> None:
    settings, server = make_settings(tmp_path), ByHand()
    outcome = run(settings, server)
    line = report.make_line(settings, outcome, "found")
    assert line["score"] == 1
    assert line["score_held_out"][0] == 1
    assert set(line["held_out"]) == {
        "found",
        "base",
        "expert dates",
        "expert sql",
        "uniform",
        "policy gate",
    }
    assert line["best_single"] == "sql"
    low = line["over_best_single"][1]
    assert low > 0
    assert outcome.requests <= 400
    assert server.most_at_once == 8
    json.dumps(line)
    sheets = report.make_sheets(settings, outcome)
    assert sheets[1].rows[0][0] == "found"

    library = tmp_path / "library"
    library.mkdir()
    report.check_name(library, "found", ["sql"], replace=False)
    assert report.store_entry(library, "found", settings, outcome, FACTS, replace=False)
    entry = read_entries(library / ENTRIES)["found"]
    assert entry.digests == {"dates": "d1", "sql": "d2"}
    assert entry.source["score_held_out"] == 1
    with pytest.raises(LibraryError, match="--replace"):
        report.check_name(library, "found", ["sql"], replace=False)
    with pytest.raises(SearchError, match="experts have their own names"):
        report.check_name(library, "sql", ["sql"], replace=False)
    with pytest.raises(SearchError, match="not on this machine"):
        report.check_name(tmp_path / "gone", "found", ["sql"], replace=False)


def test_coefficients_of_layers_are_told_in_runs(tmp_path: Path) -> None:
    space = SearchSpace(("dates", "sql"), FACTS.make_rules(6), "third")
    settings = make_settings(tmp_path, space=space, budget=Budget(24))
    outcome = run(settings, ByHand())
    point = (0.5, 0.5, 1.0, 0.0, 0.0, 0.0)
    best = replace(outcome.run.best, candidate=Candidate(point))
    outcome.run.scored[:] = [best]
    rows = {row[0]: row[1] for row in report.make_sheets(settings, outcome)[0].rows}
    assert rows["dates"] == "0.5 (4 layers), 1 (2 layers)"
    assert "sql" not in rows


def test_a_front_is_what_the_policy_pareto_reads(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "nsga2")
    check_front(settings, tmp_path, "made", replace=False)
    outcome = run(settings, ByHand())
    count = store_front(tmp_path, "made", settings, outcome, FACTS, replace=False)
    front = read_front(tmp_path / ENTRIES.parent, "made")
    assert len(front.points) == count == len(read_entries(tmp_path / ENTRIES))
    assert front.tasks == ("dates", "sql")
    assert 0 < measure_volume(outcome) <= 1
    with pytest.raises(SearchError, match="--by expert"):
        check_front(
            replace(settings, space=replace(settings.space, by="component")),
            tmp_path,
            "made",
            replace=True,
        )


def test_a_search_whose_server_ends_says_how_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="the same command goes on from there"):
        run(make_settings(tmp_path), ByHand(fails_after=70))
    server = ByHand()
    again = run(make_settings(tmp_path), server)
    assert again.run.best.mean == 1
    whole = ByHand()
    run(make_settings(tmp_path / "other"), whole)
    assert len(whole.asked) - len(server.asked) >= 48


def test_mixes_may_act_from_the_answer_on(tmp_path: Path) -> None:
    server = ByHand()
    run(make_settings(tmp_path, acts_from="answer", budget=Budget(60)), server)
    mixes = [json.loads(asked.merge) for asked in server.asked if asked.merge]
    assert mixes
    assert all(mix["acts_from"] == "answer" for mix in mixes)


@pytest.mark.parametrize("questions", [[Question("search", f"hello {n}") for n in range(4)]])
def test_questions_without_answers_want_another_objective(
    tmp_path: Path, questions: Sequence[Question]
) -> None:
    split = split_questions(questions, 0.5, 0)
    with pytest.raises(SearchError, match="use a judge or a function"):
        run(make_settings(tmp_path, split=split), ByHand())
    with pytest.raises(SearchError, match="--answer"):
        run(make_settings(tmp_path, split=split, objective="judge"), ByHand())
