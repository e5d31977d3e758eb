"""Points, and the mixes that they stand for."""

import pytest

from adapters.coefficient import Pair
from adapters.mix import MixRules
from tta_serve.search.errors import SearchError
from tta_serve.search.space import By, SearchSpace

NAMES = ("a", "b", "c")
RULES = MixRules(frozenset(NAMES), 6, max_experts=2)


@pytest.mark.parametrize(
    ("by", "point", "wanted"),
    [
        ("expert", (0.5, 0, 0.25), {"a": 0.5, "c": 0.25}),
        ("component", (0.5, 1, 0, 0, 0.2, 0.2), {"a": Pair(0.5, 1.0), "c": 0.2}),
        ("third", (0.1, 0.2, 0.3) + (0,) * 6, {"a": (0.1, 0.1, 0.2, 0.2, 0.3, 0.3)}),
        ("layer", (0,) * 11 + (1,) + (0,) * 6, {"b": (0.0,) * 5 + (1.0,)}),
    ],
)
def test_a_point_stands_for_a_mix(by: By, point: tuple[float, ...], wanted: object) -> None:
    space = SearchSpace(NAMES, RULES, by)
    assert len(point) == space.size
    assert space.read(space.settle(point)).as_dict() == wanted


def test_a_point_settles_within_bounds_on_the_grid_and_with_few_experts() -> None:
    space = SearchSpace(NAMES, RULES, low=-0.5)
    assert space.settle([-0.9, 0.07, 1.4]) == (-0.5, 0.0, 1.0)
    assert space.settle([0.26, 0.31, 0.0]) == (0.25, 0.3, 0.0)


def test_what_is_known_are_the_base_the_experts_and_all_where_a_mix_may_have_them() -> None:
    assert list(SearchSpace(NAMES, RULES).list_known()) == [
        "base",
        "expert a",
        "expert b",
        "expert c",
    ]
    two = SearchSpace(NAMES[:2], RULES, "component")
    assert two.list_known()["uniform"] == (0.5,) * 4
    assert two.list_known()["expert b"] == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("names", "bounds", "words"),
    [
        (("a", "x"), (0, 1), "there is no expert x; there are: a, b, c"),
        ((), (0, 1), "one expert or more"),
        (NAMES, (0, 3), "mix.maximum 2"),
        (NAMES, (0.2, 1), "the base, 0, must lie between"),
    ],
)
def test_a_space_that_the_server_does_not_allow_is_refused(
    names: tuple[str, ...], bounds: tuple[float, float], words: str
) -> None:
    with pytest.raises(SearchError, match=words):
        SearchSpace(names, RULES, "expert", *bounds)
