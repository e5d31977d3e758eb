"""The algorithms, on a search whose best mix is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from loadtest.common.known_optimum import OPTIMUM, make_space
from tests.factories.search_parts import open_book, run
from tta_serve.search.algorithms.competition import Competition
from tta_serve.search.algorithms.nsga2 import find_front, measure_hypervolume
from tta_serve.search.algorithms.registry import ALGORITHMS, make_algorithm
from tta_serve.search.algorithms.response_theory import ItemModel
from tta_serve.search.errors import SearchError
from tta_serve.search.scorebook import Budget
from tta_serve.search.searcher import Candidate, ScoredCandidate

ROBUST = ("frank_wolfe", "halving", "pruned")
"""Those that stand experts of no use."""


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_known_optimum_is_found(tmp_path: Path, name: str) -> None:
    book = open_book(tmp_path, make_space(), Budget(4000))
    found = run(make_algorithm(name, {}), book)
    assert found.best.mean > 0.99
    assert found.best.mean > max(one.mean for one in found.task.known) + 0.2


@pytest.mark.parametrize("name", ROBUST)
def test_sixteen_experts_of_no_use_cost_at_most_a_hundredth(tmp_path: Path, name: str) -> None:
    few = run(make_algorithm(name, {}), open_book(tmp_path / "few", make_space(), Budget(4000)))
    many = open_book(tmp_path / "many", make_space(useless=16), Budget(4000))
    assert run(make_algorithm(name, {}), many).best.mean >= 0.99 * few.best.mean


def test_a_subset_of_the_questions_stands_for_all(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space(), Budget(700))
    found = run(make_algorithm("merge3", {"share": 0.34}), book)
    asked_all = len({one.point for one in found.scored})
    assert found.best.mean > 0.97
    assert asked_all < 0.6 * book.mixes


def test_what_an_item_model_predicts_is_what_others_of_that_ability_scored() -> None:
    rng = np.random.default_rng(0)
    abilities, difficulties = rng.normal(0, 2, 60), np.linspace(-2, 2, 20)
    right = rng.random((60, 20)) < expit(abilities[:, None] - difficulties)
    model = ItemModel.fit(right.astype(float))
    asked = model.choose(8, 0)
    assert len(set(asked)) == 8
    own = [model.predict(asked, row[list(asked)]).mean() for row in right.astype(float)]
    assert np.corrcoef(own, right.mean(1))[0, 1] > 0.9


def test_competition_keeps_who_answers_what_others_do_not() -> None:
    def member(*values: float) -> ScoredCandidate:
        return ScoredCandidate(Candidate((0.0,)), dict(enumerate(values)))

    worth = Competition()._share([member(1, 1, 0), member(1, 1, 0), member(0, 0, 0.9)]).sum(1)
    assert worth[2] > 0.9 * worth[0]
    assert worth[0] == worth[1]
    plain = Competition(alpha=0)._share([member(1, 1, 0), member(0, 0, 0.9)]).sum(1)
    assert plain.tolist() == pytest.approx([2, 0.9])


def test_a_front_holds_what_no_other_is_as_good_as(tmp_path: Path) -> None:
    found = run(make_algorithm("nsga2", {}), open_book(tmp_path, make_space(), Budget(600)))
    front = find_front(found.task, found.scored)
    values = [value for _, value in front]
    assert len({point for point, _ in front}) == len(front)
    for one in found.scored:
        means = found.task.mean_by_task(one)
        assert any(all(np.asarray(value) >= means) for value in values)
    assert measure_hypervolume([(1, 0.5), (0.5, 1)], (0, 0)) == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["cma_es", "frank_wolfe"])
def test_the_optimum_is_found_among_coefficients_of_layers(tmp_path: Path, name: str) -> None:
    book = open_book(tmp_path, make_space(by="layer"), Budget(6000))
    assert run(make_algorithm(name, {}), book).best.mean > 0.97


def test_a_price_on_coefficients_makes_them_smaller(tmp_path: Path) -> None:
    def size(l1: float) -> float:
        book = open_book(tmp_path / str(l1), make_space(), Budget(1000))
        found = run(make_algorithm("cma_es", {"l1": l1}), book)
        last = found.scored[-32:]
        return sum(sum(one.point) for one in last) / len(last)

    assert size(2.0) < 0.7 * size(0.0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hill", {}, "there are: cma_es"),
        ("cma_es", {"sigma": "0"}, "sigma: Input should be greater than 0"),
        ("cma_es", {"speed": "1"}, "its options are: sigma, population, l1"),
        ("halving", {"keep": "two"}, "keep: Input should be a valid integer"),
    ],
)
def test_wrong_words_get_the_right_ones(
    name: str, options: dict[str, str | float], words: str
) -> None:
    with pytest.raises(SearchError, match=words):
        make_algorithm(name, options)


def test_all_algorithms_name_their_papers() -> None:
    assert all("arXiv" in kind.source for kind in ALGORITHMS.values())
    assert set(OPTIMUM) <= set(make_space().experts)
