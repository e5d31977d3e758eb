"""Coefficients, which say how much of one expert a mix holds.

A coefficient is one number, or one for each decoder layer, or such for attention and such for MLPs.
The token embedding, before all layers, has the coefficient of the first layer's attention; the
output head, after them, has that of the last layer's MLP.
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


Numbers = float | tuple[float, ...]
"""A number, or one for each decoder layer."""


@dataclass(frozen=True)
class Pair:
    """What the attention weights have, and what the MLP weights have."""

    attention: Numbers
    mlp: Numbers


Coefficient = Numbers | Pair
Json = float | list[float] | dict[str, float | list[float]]


def layer_of(module: str) -> int | None:
    """Return the index of the decoder layer that a module lies in, from its name."""
    found = _LAYER.search(f".{module}.")
    return int(found[1]) if found else None


def kind_of(module: str) -> Kind:
    """Return which half of its decoder layer a linear module belongs to, from its name."""
    parent = module.rpartition(".")[0].rpartition(".")[2]
    return "attention" if "att" in parent else "mlp"


def place_of(weight: str) -> Place:
    """Return where a weight of the base sits, from its name.

    Of a layer, what lies in its attention, and the norm before that, is attention's; all else is
    the MLP's. Before the layers there is the token embedding; what comes after them is the head's.
    """
    layer = layer_of(weight)
    if layer is None:
        return EMBEDDING if "embed" in weight else HEAD
    module = weight.split(f".layers.{layer}.", 1)[-1].split(".")
    attends = module[0].startswith("input") or (len(module) > 2 and "att" in module[0])
    return Place(layer, "attention" if attends else "mlp")


def numbers_of(coefficient: Coefficient) -> tuple[float, ...]:
    """Return the numbers that a coefficient is made of."""
    return tuple(number for part in halves_of(coefficient) for number in _as_tuple(part))


def halves_of(coefficient: Coefficient) -> tuple[Numbers, ...]:
    """Return the numbers of attention and MLP where those differ, else those of both."""
    if isinstance(coefficient, Pair):
        return coefficient.attention, coefficient.mlp
    return (coefficient,)


def map_numbers(coefficient: Coefficient, function: Callable[[float], float]) -> Coefficient:
    """Return the coefficient with a function applied to each of its numbers.

    Numbers that are all equal become one, so that equal mixes are equal however they were written.
    """
    mapped = [tuple(map(function, _as_tuple(part))) for part in halves_of(coefficient)]
    halves: list[Numbers] = [part[0] if len(set(part)) == 1 else part for part in mapped]
    return halves[0] if len(set(halves)) == 1 else Pair(*halves)


def spread(coefficient: Coefficient, places: Sequence[Place]) -> list[float]:
    """Return the number that a coefficient has at every place.

    A tuple must have a number for every layer that is among the places. `EMBEDDING` has what the
    first layer has, `HEAD` what the last one has.
    """
    if isinstance(coefficient, Pair):
        halves = {
            "attention": spread(coefficient.attention, places),
            "mlp": spread(coefficient.mlp, places),
        }
        return [halves[place.kind][i] for i, place in enumerate(places)]
    if isinstance(coefficient, tuple):
        ends = {EMBEDDING: 0, HEAD: len(coefficient) - 1}
        return [coefficient[ends.get(place, place.layer)] for place in places]
    return [coefficient] * len(places)


def to_json(coefficient: Coefficient) -> Json:
    """Return a coefficient as JSON can hold it."""
    if isinstance(coefficient, Pair):
        halves = {"attention": coefficient.attention, "mlp": coefficient.mlp}
        return {kind: _write_numbers(part) for kind, part in halves.items()}
    return _write_numbers(coefficient)


def from_json(value: object) -> Coefficient:
    """Return the coefficient that JSON holds; the inverse of `to_json`.

    Raises ValueError for anything else, and says what would be a coefficient.
    """
    if isinstance(value, dict) and value.keys() == {"attention", "mlp"}:
        attention, mlp = map(_read_numbers, (value["attention"], value["mlp"]))
        if attention is not None and mlp is not None:
            return Pair(attention, mlp)
    elif (numbers := _read_numbers(value)) is not None:
        return numbers
    wanted = "a number, a list of one number for each layer, or {attention: such, mlp: such}"
    raise ValueError(f"a coefficient is {wanted}; got {reprlib.repr(value)}")


def _as_tuple(numbers: Numbers) -> tuple[float, ...]:
    return numbers if isinstance(numbers, tuple) else (numbers,)


def _write_numbers(numbers: Numbers) -> float | list[float]:
    return list(numbers) if isinstance(numbers, tuple) else numbers


def _read_numbers(value: object) -> Numbers | None:
    """Return what JSON holds; None for what is neither a number nor a list of numbers."""
    if isinstance(value, list) and value and all(map(_is_number, value)):
        return tuple(map(float, value))
    return float(value) if _is_number(value) else None  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
