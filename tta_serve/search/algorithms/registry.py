"""All algorithms by name, and how one is made from a user's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from tta_serve.search.algorithms.cma_es import CmaEs
from tta_serve.search.algorithms.competition import Competition
from tta_serve.search.algorithms.frank_wolfe import FrankWolfe
from tta_serve.search.algorithms.halving import Halving
from tta_serve.search.algorithms.nsga2 import Nsga2
from tta_serve.search.algorithms.pruning import Pruning
from tta_serve.search.algorithms.quality_diversity import QualityDiversity
from tta_serve.search.algorithms.response_theory import ResponseTheory
from tta_serve.search.errors import SearchError
from tta_serve.search.searcher import Algorithm

ALGORITHMS: Mapping[str, type[Algorithm]] = MappingProxyType(
    {
        "cma_es": CmaEs,
        "frank_wolfe": FrankWolfe,
        "halving": Halving,
        "merge3": ResponseTheory,
        "pruned": Pruning,
        "m2n2": Competition,
        "nsga2": Nsga2,
        "cycle_qd": QualityDiversity,
    }
)
"""The class of each algorithm."""


def make_algorithm(name: str, options: Mapping[str, str | float]) -> Algorithm:
    """Return an algorithm with these options, which may be text.

    Raises:
        SearchError: There is no such algorithm or option, or a value is wrong.
    """
    if name not in ALGORITHMS:
        raise SearchError(
            f"there is no algorithm {name!r}; there are: {', '.join(sorted(ALGORITHMS))}"
        )
    kind = ALGORITHMS[name]
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        own = ", ".join(option.name for option in fields(kind)) or "none"
        place = ".".join(map(str, first["loc"]))
        raise SearchError(
            f"{name}: option {place}: {first['msg']}; its options are: {own}"
        ) from None
