"""The algorithms, on a search whose best mix is known."""

from pathlib import Path

import pytest

from tests.factories.search_parts import OPTIMUM, make_space, open_book, run
from tta_serve.search.algorithms.registry import ALGORITHMS, make_algorithm
from tta_serve.search.errors import SearchError
from tta_serve.search.scorebook import Budget

ROBUST = ("frank_wolfe", "halving")
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
