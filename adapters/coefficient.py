"""Coefficients, which say how much of one expert a mix holds.

A coefficient is one number, one for attention and one for MLPs, or one for each decoder layer. The
token embedding, before all layers, has the coefficient of the first layer's attention; the output
head, after them, has that of the last layer's MLP.
"""

import re
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["attention", "mlp"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class Place(NamedTuple):
    """Where in the base a weight sits."""

    layer: int
    """The index of its decoder layer."""
    kind: Kind
    """The half of the layer that it belongs to."""


EMBEDDING = Place(-1, "attention")
"""Where the token embedding sits: before all layers."""
HEAD = Place(sys.maxsize, "mlp")
"""Where the output head sits: after all layers."""


@dataclass(frozen=True)
class Pair:
    """A coefficient for the attention weights of every layer and one for its MLP weights."""

    attention: float
    mlp: float


Coefficient = float | Pair | tuple[float, ...]
"""A tuple has one number for each decoder layer."""
Json = float | dict[str, float] | list[float]


def layer_of(module: str) -> int | None:
    """Return the index of the decoder layer that a module lies in, from its name."""
    found = _LAYER.search(f".{module}.")
    return int(found[1]) if found else None


def numbers_of(coefficient: Coefficient) -> tuple[float, ...]:
    """Return the numbers that a coefficient is made of."""
    if isinstance(coefficient, Pair):
        return coefficient.attention, coefficient.mlp
    return coefficient if isinstance(coefficient, tuple) else (coefficient,)


def map_numbers(coefficient: Coefficient, function: Callable[[float], float]) -> Coefficient:
    """Return the coefficient with a function applied to each of its numbers.

    Numbers that are all equal become one, so that equal mixes are equal however they were written.
    """
    values = tuple(function(v) for v in numbers_of(coefficient))
    if len(set(values)) == 1:
        return values[0]
    return Pair(*values) if isinstance(coefficient, Pair) else values


def spread(coefficient: Coefficient, places: Sequence[Place]) -> list[float]:
    """Return the number that a coefficient has at every place.

    A tuple must have a number for every layer that is among the places. `EMBEDDING` has what the
    first layer has, `HEAD` what the last one has.
    """
    if isinstance(coefficient, Pair):
        return [
            coefficient.attention if place.kind == "attention" else coefficient.mlp
            for place in places
        ]
    if isinstance(coefficient, tuple):
        ends = {EMBEDDING: 0, HEAD: len(coefficient) - 1}
        return [coefficient[ends.get(place, place.layer)] for place in places]
    return [coefficient] * len(places)


def to_json(coefficient: Coefficient) -> Json:
    """Return a coefficient as JSON can hold it."""
    if isinstance(coefficient, Pair):
        return {"attention": coefficient.attention, "mlp": coefficient.mlp}
    return list(coefficient) if isinstance(coefficient, tuple) else coefficient


def from_json(value: object) -> Coefficient:
    """Return the coefficient that JSON holds; the inverse of `to_json`.

    Raises ValueError for anything else, and says what would be a coefficient.
    """
    if (
        isinstance(value, dict)
        and value.keys() == {"attention", "mlp"}
        and all(map(_is_number, value.values()))
    ):
        return Pair(float(value["attention"]), float(value["mlp"]))
    if isinstance(value, list) and value and all(map(_is_number, value)):
        return tuple(map(float, value))
    if _is_number(value):
        return float(value)  # type: ignore[arg-type]
    wanted = (
        "a number, {attention: a number, mlp: a number}, or a list of one number for each layer"
    )
    raise ValueError(f"a coefficient is {wanted}; got {reprlib.repr(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
