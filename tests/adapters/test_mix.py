"""Mixes: grid, bounds, and keys that are their content."""

import math

import pytest

from adapters.coefficient import EMBEDDING, HEAD, Pair, Place, from_json, spread
from adapters.errors import MixError
from adapters.mix import Mix, MixRules

RULES = MixRules(frozenset("abcde"), layers=3)
DIGESTS = {name: name * 64 for name in "abcde"}


def test_coefficients_go_to_the_nearest_point_of_the_grid() -> None:
    assert RULES.mix({"b": 0.333, "a": 0.7000001, "c": 0.01}).coefficients == (
        ("a", 0.7),
        ("b", 0.35),
    )


def test_the_empty_mix_is_the_base() -> None:
    assert RULES.mix({"a": 0.0}).is_base
    assert RULES.mix({}) == Mix()


def test_the_key_is_the_content_whatever_the_order_or_the_names() -> None:
    one, two = RULES.mix({"a": 0.7, "b": 0.3}), RULES.mix({"b": 0.3, "a": 0.7})
    assert one.key(DIGESTS) == two.key(DIGESTS)
    assert one.key(DIGESTS) == Mix.of({"x": 0.7, "b": 0.3}).key({**DIGESTS, "x": "a" * 64})
    assert one.key(DIGESTS) != RULES.mix({"a": 0.3, "b": 0.7}).key(DIGESTS)
    assert one.key(DIGESTS) != one.key({**DIGESTS, "a": "z" * 64}), (
        "a re-used name with other weights"
    )


@pytest.mark.parametrize(
    ("coefficients", "says"),
    [
        ({"z": 1.0}, "the library holds: a, b, c, d, e"),
        ({"a": math.nan}, "finite"),
        ({"a": math.inf}, "finite"),
        ({"a": True}, "finite number"),
        ({"a": 2.5}, "[-2.0, 2.0]"),
        (dict.fromkeys("abcde", 0.2), "at most 4"),
    ],
)
def test_what_is_no_mix_is_refused_and_says_why(coefficients: dict[str, float], says: str) -> None:
    with pytest.raises(MixError) as error:
        RULES.mix(coefficients)
    assert says in str(error.value)


def test_what_an_operator_fixed_may_hold_more_experts_than_a_request_may() -> None:
    assert RULES.entry(dict.fromkeys("abcde", 0.21)) == Mix.of(dict.fromkeys("abcde", 0.2))
    assert RULES.entry({"a": 0.7}) == RULES.mix({"a": 0.7})
    with pytest.raises(MixError, match="the library holds: a, b, c, d, e"):
        RULES.entry({"z": 0.5})


def test_a_coefficient_may_differ_between_attention_and_mlp_or_from_layer_to_layer() -> None:
    mix = RULES.mix(
        {"a": Pair(0.51, 1.0), "b": (0.0, 0.5, 1.0), "c": Pair(0.0, 0.0), "d": (1.0, 1.0, 1.0)}
    )
    assert mix.as_json() == {"a": {"attention": 0.5, "mlp": 1.0}, "b": [0.0, 0.5, 1.0], "d": 1.0}
    assert mix.key(DIGESTS) != RULES.mix({"a": Pair(1.0, 0.5), "b": (0.0, 0.5, 1.0), "d": 1.0}).key(
        DIGESTS
    )
    assert {name: from_json(value) for name, value in mix.as_json().items()} == mix.as_dict()


def test_a_coefficient_may_differ_in_both_ways_at_once() -> None:
    uneven, level = (1.0, 0.0, 1.0), (0.5, 0.5, 0.5)
    mix = RULES.mix(
        {"a": Pair((0.0, 0.51, 1.0), 1.0), "b": Pair(uneven, uneven), "c": Pair(0, level)}
    )
    assert mix.as_json() == {
        "a": {"attention": [0.0, 0.5, 1.0], "mlp": 1.0},
        "b": [1.0, 0.0, 1.0],
        "c": {"attention": 0.0, "mlp": 0.5},
    }
    assert {name: from_json(value) for name, value in mix.as_json().items()} == mix.as_dict()


def test_a_coefficient_for_each_layer_wants_as_many_as_there_are_layers() -> None:
    with pytest.raises(MixError, match="2 coefficients for 'a'; the base has 3 layers"):
        RULES.mix({"a": (0.5, 1.0)})
    with pytest.raises(MixError, match="2 coefficients for 'a'; the base has 3 layers"):
        RULES.mix({"a": Pair(1.0, (0.5, 1.0))})
    with pytest.raises(MixError, match=r"3.0; it must lie in \[-2.0, 2.0\]"):
        RULES.mix({"a": Pair(0.5, 3.0)})


@pytest.mark.parametrize(
    "value",
    [
        "1",
        None,
        True,
        [],
        [1, "2"],
        {"attention": 1},
        {"attention": 1, "mlp": None},
        {"attention": [], "mlp": 1},
    ],
)
def test_what_is_no_coefficient_is_refused_with_what_is_one(value: object) -> None:
    with pytest.raises(ValueError, match="a coefficient is a number"):
        from_json(value)


def test_a_coefficient_at_every_place() -> None:
    places = [Place(0, "attention"), Place(0, "mlp"), Place(1, "mlp")]
    assert spread(0.5, places) == [0.5, 0.5, 0.5]
    assert spread(Pair(0.1, 0.2), places) == [0.1, 0.2, 0.2]
    assert spread((0.1, 0.2), places) == [0.1, 0.1, 0.2]
    assert spread(Pair((0.1, 0.2), 0.3), places) == [0.1, 0.3, 0.3]
    assert spread(Pair((0.1, 0.2), (0.3, 0.4)), [*places, EMBEDDING, HEAD]) == [
        *(0.1, 0.3, 0.4),
        *(0.1, 0.4),
    ]
    ends = [EMBEDDING, HEAD]
    assert spread(0.5, ends) == [0.5, 0.5]
    assert spread(Pair(0.1, 0.2), ends) == [0.1, 0.2]
    assert spread((0.1, 0.2, 0.3), ends) == [0.1, 0.3]
    assert sorted([HEAD, *places, EMBEDDING]) == [EMBEDDING, *places, HEAD]
