"""A search on an engine finds a mix that is known, also among experts of no use."""

import asyncio
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.coefficient import Json
from adapters.library.library import Library
from adapters.mix import Mix, MixRules
from tests.factories.engines import Answer, Engine
from tests.factories.experts import ALL_LINEAR, make_expert
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base, write_library
from tta_serve.search.algorithms.frank_wolfe import FrankWolfe
from tta_serve.search.journal import SearchJournal
from tta_serve.search.scorebook import Budget, Scorebook
from tta_serve.search.search_loop import search
from tta_serve.search.searcher import SearchTask
from tta_serve.search.space import SearchSpace

HIDDEN = {"small": 0.6, "rslora": 0.35}
USEFUL = ("few", "rslora", "small")
USELESS = 16
ASKED = prompts((3, 9, 24, 40, 17, 5, 12, 30, 21, 7, 15, 11))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("search")
    base = write_base(folder / "base", BASES["llama"])
    library = write_library(folder / "library", base)
    for n in range(USELESS):
        make_expert(
            library.root / f"useless-{n:02}",
            base,
            seed=100 + n,
            rank=4,
            layers=range(2),
            modules=ALL_LINEAR,
            strength=5,
        )
    with tiny_engine(base, Library.open(library.root)) as engine:
        yield engine
    shutil.rmtree(folder)


class Batches:
    """Scores whatever is asked for at the same time in one batch.

    A mix is worth exp(-|d log p|) of the token that the hidden mix says next, nothing if it says
    another: 1 for the hidden mix alone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[tuple[int, Mix, asyncio.Future[Answer]]] = []
        self._wanted = engine.go_on(ASKED, [Mix.of(HIDDEN)] * len(ASKED), 1)
        self.sizes: list[int] = []

    async def score(self, number: int, experts: Mapping[str, Json]) -> float:
        found: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        coefficients: Any = dict(experts)
        self._waiting.append((number, Mix.of(coefficients), found))
        await asyncio.sleep(0)
        if self._waiting:
            self._run()
        answer, wanted = await found, self._wanted[number]
        off = abs(answer.logprobs[0] - wanted.logprobs[0])
        return math.exp(-off) if answer.tokens == wanted.tokens else 0.0

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.sizes.append(len(waiting))
        answers = self._engine.go_on(
            [ASKED[n] for n, _, _ in waiting], [m for _, m, _ in waiting], 1
        )
        for (_, _, found), answer in zip(waiting, answers, strict=True):
            found.set_result(answer)


def find_best(batches: Batches, names: tuple[str, ...], folder: Path) -> float:
    space = SearchSpace(names, MixRules(frozenset(names), 2))
    journal = SearchJournal.open(folder, {})
    book = Scorebook(space, len(ASKED), batches.score, 16, journal, Budget(6000))
    groups = ("x",) * len(ASKED)
    run = asyncio.run(
        search(FrankWolfe(), lambda known: SearchTask(space, groups, known, 16, 0), book, 16)
    )
    return run.best.mean


def test_a_known_mix_is_found_and_experts_of_no_use_cost_at_most_a_hundredth(
    engine: Engine, tmp_path: Path
) -> None:
    batches = Batches(engine)
    few = find_best(batches, USEFUL, tmp_path / "few")
    useless = tuple(f"useless-{n:02}" for n in range(USELESS))
    many = find_best(batches, (*USEFUL, *useless), tmp_path / "many")
    assert few > 0.9
    assert many >= 0.99 * few
    assert sum(batches.sizes) / len(batches.sizes) > 12
