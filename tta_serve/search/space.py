"""What is searched: the coefficients of experts, as points of a box with a grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from adapters.coefficient import Coefficient, Pair
from adapters.mix import Mix, MixRules
from tta_serve.search.errors import SearchError

By = Literal["expert", "component", "third", "layer"]
"""What has a coefficient of its own.

expert      each expert
component   its attention weights of all layers, and its MLPs
third       its first, middle and last third of the layers
layer       each layer of it
"""
Point = tuple[float, ...]
"""One number for each coordinate: all parts of the first expert, then those of the next."""


@dataclass(frozen=True)
class SearchSpace:
    """Coefficients of experts, each from `low` to `high`, on the grid of a server.

    Raises SearchError for bounds that the server does not allow, and without any expert.
    """

    experts: tuple[str, ...]
    """The experts that may be mixed."""
    rules: MixRules
    """What the server allows in a mix."""
    by: By = "expert"
    """What has a coefficient of its own."""
    low: float = 0.0
    """The least coefficient."""
    high: float = 1.0
    """The greatest coefficient."""

    def __post_init__(self) -> None:
        if unknown := set(self.experts) - self.rules.names:
            raise SearchError(
                f"there is no expert {', '.join(sorted(unknown))}; there are:"
                f" {', '.join(sorted(self.rules.names))}"
            )
        if not self.experts:
            raise SearchError("a search wants one expert or more")
        if not self.rules.minimum <= self.low <= 0 < self.high <= self.rules.maximum:
            raise SearchError(
                f"bounds of {self.low:g} and {self.high:g}: the base, 0, must lie between them, and"
                f" they between mix.minimum {self.rules.minimum:g} and mix.maximum"
                f" {self.rules.maximum:g} of the server"
            )

    @property
    def parts(self) -> int:
        """How many coefficients an expert has."""
        return {"expert": 1, "component": 2, "third": 3, "layer": self.rules.layers}[self.by]

    @property
    def size(self) -> int:
        """How many coordinates a point has."""
        return self.parts * len(self.experts)

    @property
    def most(self) -> int:
        """How many experts a mix may have."""
        return min(self.rules.max_experts, len(self.experts))

    @cached_property
    def origin(self) -> Point:
        """The point of the base alone."""
        return (0.0,) * self.size

    @property
    def uniform(self) -> Point | None:
        """The point of all experts in equal parts; None where one mix may not have them all."""
        if self.most < len(self.experts):
            return None
        return self.settle([self.clip(1 / len(self.experts))] * self.size)

    def isolate(self, number: int, value: float = 1.0) -> Point:
        """Return the point of one expert alone, with this coefficient."""
        found = np.zeros((len(self.experts), self.parts))
        found[number] = self.clip(value)
        return self.settle(found.ravel())

    def clip(self, value: float) -> float:
        """Return the nearest number within the bounds."""
        return min(max(value, self.low), self.high)

    def settle(self, point: Iterable[float]) -> Point:
        """Return the nearest point within the bounds, on the grid and of few enough experts.

        Where there are too many, those with the largest coefficients stay, by their mean square.
        """
        found = np.clip(np.asarray(list(point), float), self.low, self.high)
        blocks = found.reshape(len(self.experts), self.parts)
        ranked = np.argsort(-(blocks**2).mean(1), kind="stable")
        blocks[ranked[self.most :]] = 0
        return tuple(self.rules.snap(float(value)) + 0.0 for value in blocks.ravel())

    def read(self, point: Point) -> Mix:
        """Return the mix that a point stands for."""
        parts = self.parts
        blocks = [point[k * parts : (k + 1) * parts] for k in range(len(self.experts))]
        return self.rules.mix(
            {name: self._read_block(b) for name, b in zip(self.experts, blocks, strict=True)}
        )

    def list_known(self) -> dict[str, Point]:
        """Return what a search is compared with, by name: the base, experts alone, all of them."""
        known = {"base": self.origin}
        known |= {f"expert {name}": self.isolate(k) for k, name in enumerate(self.experts)}
        if self.uniform is not None and len(self.experts) > 1:
            known["uniform"] = self.uniform
        return known

    def group(self, number: int) -> tuple[int, ...]:
        """Return the coordinates of one expert."""
        return tuple(range(number * self.parts, (number + 1) * self.parts))

    def _read_block(self, block: Point) -> Coefficient:
        """Return what one expert's coordinates mean."""
        if self.by == "expert":
            return block[0]
        if self.by == "component":
            return Pair(*block)
        layers = self.rules.layers
        return tuple(block[layer * len(block) // layers] for layer in range(layers))


def name_settings(space: SearchSpace) -> Mapping[str, object]:
    """Return what makes two spaces the same."""
    rules = space.rules
    return {
        "experts": list(space.experts),
        "by": space.by,
        "low": space.low,
        "high": space.high,
        "grid": rules.grid,
        "most": space.most,
        "layers": rules.layers,
    }
