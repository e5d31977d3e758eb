"""Mixes: grid, bounds, and keys that are their content."""

import math

import pytest

from adapters.errors import MixError
from adapters.mix import Mix, MixRules

RULES = MixRules(frozenset("abcde"))
DIGESTS = {name: name * 64 for name in "abcde"}


def test_coefficients_go_to_the_nearest_point_of_the_grid() -> None:
    assert RULES.mix({"b": 0.333, "a": 0.7000001, "c": 0.01}).coefficients == (("a", 0.7), ("b", 0.35))


def test_the_empty_mix_is_the_base() -> None:
    assert RULES.mix({"a": 0.0}).is_base
    assert RULES.mix({}) == Mix()


def test_the_key_is_the_content_whatever_the_order_or_the_names() -> None:
    one, two = RULES.mix({"a": 0.7, "b": 0.3}), RULES.mix({"b": 0.3, "a": 0.7})
    assert one.key(DIGESTS) == two.key(DIGESTS)
    assert one.key(DIGESTS) == Mix.of({"x": 0.7, "b": 0.3}).key({**DIGESTS, "x": "a" * 64})
    assert one.key(DIGESTS) != RULES.mix({"a": 0.3, "b": 0.7}).key(DIGESTS)
    assert one.key(DIGESTS) != one.key({**DIGESTS, "a": "z" * 64}), "a re-used name with other weights"


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
