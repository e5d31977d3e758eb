"""The ways in which a static merge is tried, and the one that is judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adapters.merge.registry import METHODS

DENSITIES = (0.1, 0.5, 0.9)
"""The densities that a tuned method is tried with beside its own, so at most four merges of it."""


@dataclass(frozen=True)
class MergeVariant:
    """A method, with a density where that is tuned."""

    method: str
    density: float | None = None
    """The share of entries that stay; None for the method's own, or where it knows none."""

    @property
    def expert(self) -> str:
        """What its merge is called in the library that serves it."""
        return f"merge-{self.method}" + (f"-density-{self.density:g}" if self.density else "")

    @property
    def title(self) -> str:
        """What its merge is called in a report."""
        return f"merge {self.method}" + (f", density {self.density:g}" if self.density else "")

    @property
    def options(self) -> dict[str, float]:
        """The options of the method that are set."""
        return {} if self.density is None else {"density": self.density}


@dataclass(frozen=True)
class TunedMerge:
    """A merge as it is judged."""

    variant: MergeVariant
    scale: float = 1.0
    """The coefficient of its expert."""

    @property
    def arm(self) -> str:
        """The name of its arm, that of its method."""
        return MergeVariant(self.variant.method).title


def list_variants(methods: Iterable[str], *, tuned: bool) -> list[MergeVariant]:
    """List the merges that are made of some methods.

    Args:
        methods: The methods' names.
        tuned: Whether those with an option `density` are made once for each of `DENSITIES` and
            their own.
    """
    return [
        MergeVariant(method, density)
        for method in methods
        for density in (_list_densities(method) if tuned else [None])
    ]


def _list_densities(method: str) -> list[float | None]:
    option = METHODS[method].options.get("density")
    if option is None:
        return [None]
    own = [] if option.default is None else [float(option.default)]
    return list(dict.fromkeys([*own, *DENSITIES]))
