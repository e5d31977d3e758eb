"""A mix: how much of each expert one request uses."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.errors import MixError


@dataclass(frozen=True)
class Mix:
    """Non-zero coefficients by expert name, in the order of the names. The empty mix is the base."""

    coefficients: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, coefficients: Mapping[str, float]) -> "Mix":
        return cls(tuple(sorted((name, float(c)) for name, c in coefficients.items() if c != 0)))

    @property
    def is_base(self) -> bool:
        return not self.coefficients

    def as_dict(self) -> dict[str, float]:
        return dict(self.coefficients)

    def key(self, digests: Mapping[str, str]) -> str:
        """SHA-256 of the mix's content: the digest of each expert and its coefficient.

        Two requests share cached keys and values exactly when these are equal, whatever the experts are called.
        """
        content = sorted((digests[name], c) for name, c in self.coefficients)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class MixRules:
    """What coefficients may be: multiples of `grid` in [minimum, maximum], at most `max_experts` of them non-zero.

    The grid makes equal decisions equal mixes, so that they share cached keys and values.
    """

    names: frozenset[str]
    grid: float = 0.05
    max_experts: int = 4
    minimum: float = -2.0
    maximum: float = 2.0
    _digits: int = field(default=10, repr=False)

    def mix(self, coefficients: Mapping[str, float]) -> Mix:
        """The mix nearest to `coefficients` on the grid.

        Raises MixError for an unknown expert, a coefficient that is no finite number in range, or too many experts.
        """
        for name, value in coefficients.items():
            self._check(name, value)
        mix = Mix.of({name: self._round(value) for name, value in coefficients.items()})
        if len(mix.coefficients) > self.max_experts:
            raise MixError(f"{len(mix.coefficients)} experts in one mix; at most {self.max_experts} may be non-zero")
        return mix

    def _round(self, value: float) -> float:
        return round(round(value / self.grid) * self.grid, self._digits)

    def _check(self, name: str, value: object) -> None:
        if name not in self.names:
            raise MixError(f"unknown expert {name!r}; the library holds: {', '.join(sorted(self.names))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise MixError(f"coefficient of {name!r} must be a finite number, got {value!r}")
        if not self.minimum <= value <= self.maximum:
            raise MixError(f"coefficient of {name!r} is {value}; it must lie in [{self.minimum}, {self.maximum}]")
