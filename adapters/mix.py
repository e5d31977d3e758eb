"""A mix: how much of each expert one request uses."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.coefficient import Coefficient, Json, each, numbers, to_json
from adapters.errors import MixError


@dataclass(frozen=True)
class Mix:
    """Coefficients by expert name, in the order of the names, without those that are all zero. The empty mix is the base."""

    coefficients: tuple[tuple[str, Coefficient], ...] = ()

    @classmethod
    def of(cls, coefficients: Mapping[str, Coefficient]) -> "Mix":
        exact = {name: each(coefficients[name], float) for name in sorted(coefficients)}
        return cls(tuple((name, c) for name, c in exact.items() if any(numbers(c))))

    @property
    def is_base(self) -> bool:
        return not self.coefficients

    def as_dict(self) -> dict[str, Coefficient]:
        return dict(self.coefficients)

    def as_json(self) -> dict[str, Json]:
        return {name: to_json(c) for name, c in self.coefficients}

    def key(self, digests: Mapping[str, str]) -> str:
        """SHA-256 of the mix's content: the digest of each expert and its coefficient.

        Two requests share cached keys and values exactly when these are equal, whatever the experts are called.
        """
        content = sorted(((digests[name], to_json(c)) for name, c in self.coefficients), key=lambda item: item[0])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class MixRules:
    """What coefficients may be: multiples of `grid` in [minimum, maximum], at most `max_experts` of them non-zero.

    The grid makes equal decisions equal mixes, so that they share cached keys and values. layers: how many the base has.
    """

    names: frozenset[str]
    layers: int
    grid: float = 0.05
    max_experts: int = 4
    minimum: float = -2.0
    maximum: float = 2.0
    _digits: int = field(default=10, repr=False)

    def mix(self, coefficients: Mapping[str, Coefficient]) -> Mix:
        """The mix nearest to `coefficients` on the grid.

        Raises MixError as `entry`, and for too many experts.
        """
        mix = self.entry(coefficients)
        if len(mix.coefficients) > self.max_experts:
            raise MixError(f"{len(mix.coefficients)} experts in one mix; at most {self.max_experts} may be non-zero")
        return mix

    def entry(self, coefficients: Mapping[str, Coefficient]) -> Mix:
        """As `mix`, of however many experts: what an operator has fixed ahead of all requests.

        Raises MixError for an unknown expert, a coefficient that is no finite number in range or has not one number for
        each layer.
        """
        for name, value in coefficients.items():
            self._check(name, value)
        return Mix.of({name: each(value, self.rounded) for name, value in coefficients.items()})

    def rounded(self, value: float) -> float:
        """The nearest multiple of the grid."""
        return round(round(value / self.grid) * self.grid, self._digits)

    def _check(self, name: str, coefficient: Coefficient) -> None:
        if name not in self.names:
            raise MixError(f"unknown expert {name!r}; the library holds: {', '.join(sorted(self.names))}")
        if isinstance(coefficient, tuple) and len(coefficient) != self.layers:
            raise MixError(f"{len(coefficient)} coefficients for {name!r}; the base has {self.layers} layers, each takes one")
        for value in numbers(coefficient):
            self._check_number(name, value)

    def _check_number(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise MixError(f"coefficient of {name!r} must be a finite number, got {value!r}")
        if not self.minimum <= value <= self.maximum:
            raise MixError(f"coefficient of {name!r} is {value}; it must lie in [{self.minimum}, {self.maximum}]")
