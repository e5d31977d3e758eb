"""A search whose best mix is known: scores fall with the distance to it, and cost nothing."""

import math
import random
from collections.abc import Mapping

from adapters.coefficient import Json, from_json, numbers_of
from adapters.mix import MixRules
from tta_serve.search.space import By, SearchSpace

OPTIMUM = {"a": 0.6, "b": 0.35, "c": 0.0}
"""The coefficients whose score is 1; those of all other experts are 0."""
QUESTIONS = 12
GROUPS = ("x", "y") * (QUESTIONS // 2)
"""The task of each question."""
BATCH = 16


def make_space(useless: int = 0, by: By = "expert", most: int = 4) -> SearchSpace:
    """Return the space of the optimum's experts and of some that are of no use."""
    names = (*OPTIMUM, *(f"useless-{n:02}" for n in range(useless)))
    return SearchSpace(names, MixRules(frozenset(names), 4, max_experts=most), by)


async def score(number: int, mix: Mapping[str, Json]) -> float:
    """Return exp(-2 d^2) of a mix, where each question weighs the experts otherwise."""
    rng, distance = random.Random(number), 0.0
    for name in sorted({*OPTIMUM, *mix}):
        numbers = numbers_of(from_json(mix.get(name, 0.0)))
        off = sum((value - OPTIMUM.get(name, 0.0)) ** 2 for value in numbers) / len(numbers)
        distance += rng.uniform(0.5, 1.5) * off
    return math.exp(-2 * distance)
