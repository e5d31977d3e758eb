"""Mixes, which say how much of each expert one request uses."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from adapters.coefficient import (
    Coefficient,
    Json,
    halves_of,
    map_numbers,
    numbers_of,
    to_json,
)
from adapters.errors import MixError


@dataclass(frozen=True)
class Mix:
    """How much of each expert one request uses; the empty mix is the base."""

    coefficients: tuple[tuple[str, Coefficient], ...] = ()
    """Names of experts and their coefficients, in the order of the names, none of them zero."""

    @classmethod
    def of(cls, coefficients: Mapping[str, Coefficient]) -> "Mix":
        """Return the mix of these coefficients by expert, without those that are zero."""
        exact = {name: map_numbers(coefficients[name], float) for name in sorted(coefficients)}
        return cls(tuple((name, c) for name, c in exact.items() if any(numbers_of(c))))

    @property
    def is_base(self) -> bool:
        """Whether no expert takes part."""
        return not self.coefficients

    def as_dict(self) -> dict[str, Coefficient]:
        """Return the coefficients by expert."""
        return dict(self.coefficients)

    def as_json(self) -> dict[str, Json]:
        """Return the coefficients by expert, as JSON can hold them."""
        return {name: to_json(c) for name, c in self.coefficients}

    def key(self, digests: Mapping[str, str]) -> str:
        """Return SHA-256 of the mix's content: the digest of each expert and its coefficient.

        Two requests share cached keys and values exactly when these are equal, whatever the experts
        are called.

        Args:
            digests: Those of the experts, by name.
        """
        content = sorted(
            ((digests[name], to_json(c)) for name, c in self.coefficients), key=lambda item: item[0]
        )
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class MixRules:
    """What the coefficients of a mix may be.

    The grid makes nearly equal decisions equal mixes, so that they share cached keys and values.
    """

    names: frozenset[str]
    """The experts that there are."""
    layers: int
    """How many decoder layers the base has."""
    grid: float = 0.05
    """What every number is a multiple of."""
    max_experts: int = 4
    """How many experts one request may use, besides shared ones."""
    minimum: float = -2.0
    """The least that a number may be."""
    maximum: float = 2.0
    """The most that a number may be."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """By exclusive part of Twin-Merging, the shared one, which is on in every mix that has it."""
    aside: frozenset[str] = frozenset()
    """The experts that policies do not choose: shared ones, and such that others stand for."""
    alone: frozenset[str] = frozenset()
    """The experts that may be in no mix with others; policies do not choose them either."""
    _digits: int = field(default=10, repr=False)

    def mix(self, coefficients: Mapping[str, Coefficient]) -> Mix:
        """Return the mix nearest to some coefficients on the grid.

        Raises MixError as `entry` does, and for too many experts.
        """
        mix = self.entry(coefficients)
        always_on = set(self.shared.values())
        chosen = [name for name, _ in mix.coefficients if name not in always_on]
        if len(chosen) > self.max_experts:
            raise MixError(
                f"{len(chosen)} experts in one mix; at most {self.max_experts} may be non-zero"
            )
        return mix

    def entry(self, coefficients: Mapping[str, Coefficient]) -> Mix:
        """Return the same as `mix`, of however many experts an operator has fixed for an entry.

        Raises MixError for an unknown expert, for a coefficient that is out of range, not finite,
        or has not one number for each layer, and for an expert beside one that may be used only
        alone.
        """
        for name, value in coefficients.items():
            self._check(name, value)
        mix = self.complete(
            {name: map_numbers(value, self.snap) for name, value in coefficients.items()}
        )
        self._check_alone(mix)
        return mix

    def complete(self, coefficients: Mapping[str, Coefficient]) -> Mix:
        """Return the mix of these coefficients, and of the shared experts that go with them.

        An exclusive part of Twin-Merging is what an expert knows beyond the shared one: wherever it
        is, that has the coefficient 1, unless it is given one of its own, which may be 0.
        """
        used = [name for name, value in coefficients.items() if any(numbers_of(value))]
        always_on = {self.shared[name]: 1.0 for name in used if name in self.shared}
        return Mix.of({**always_on, **coefficients})

    @property
    def classes(self) -> frozenset[str]:
        """The experts that policies choose among."""
        return self.names - self.aside - self.alone

    def narrow(self, classes: Collection[str]) -> "MixRules":
        """Return the same rules, with these experts alone to choose among."""
        return replace(self, aside=self.names.difference(classes))

    def snap(self, value: float) -> float:
        """Return the nearest multiple of the grid."""
        return round(round(value / self.grid) * self.grid, self._digits)

    def _check(self, name: str, coefficient: Coefficient) -> None:
        if name not in self.names:
            raise MixError(
                f"unknown expert {name!r}; the library holds: {', '.join(sorted(self.names))}"
            )
        for part in halves_of(coefficient):
            if isinstance(part, tuple) and len(part) != self.layers:
                raise MixError(
                    f"{len(part)} coefficients for {name!r}; the base has {self.layers} layers,"
                    " each takes one"
                )
        for value in numbers_of(coefficient):
            self._check_number(name, value)

    def _check_alone(self, mix: Mix) -> None:
        names = [name for name, _ in mix.coefficients]
        lone = [name for name in names if name in self.alone]
        if lone and len(names) > 1:
            raise MixError(
                f"{lone[0]!r} may be used only alone, says its owner; leave it out, or"
                f" {', '.join(sorted({*names} - {lone[0]}))}"
            )

    def _check_number(self, name: str, value: object) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise MixError(f"coefficient of {name!r} must be a finite number, got {value!r}")
        if not self.minimum <= value <= self.maximum:
            raise MixError(
                f"coefficient of {name!r} is {value}; it must lie in [{self.minimum},"
                f" {self.maximum}]"
            )
