"""One row of the table of static merges: a pure function of one weight, and its options.

The name of the function's first parameter says what kind of method it is:

    f(deltas, weights, *, ...)
        deltas: [experts, *shape], float32, zeros for an expert that leaves the weight alone; it may
        be overwritten. Returns the merged delta, [*shape].
    f(delta, *, ...)
        A method that changes each expert by itself, sum_k weights_k f(delta_k); [*shape], likewise.
    f(weights, *, ...)
        A linear method, sum_k c_k delta_k. Returns the coefficients c, [experts].
    f(factors, weights, *, ...)
        A method on factors: one `LowRank` for each expert, of rank 0 for one that leaves the weight
        alone. Returns `LowRank`.

weights: [experts], float32. What else a function takes, by keyword, is either one of `RESERVED`,
which `MergedDeltas` supplies, or an option of the user, whose type, rule and default are those of
the signature; one without a default must be given.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from adapters.errors import MergeError
from adapters.expert import LowRank

Value = str | float | int | bool
"""What a user may give for an option."""

RESERVED = MappingProxyType(
    {
        "base": "the base's weight, [*shape], float32",
        "layer": "the index of the weight's decoder layer, None outside of them",
        "layers": "how many decoder layers there are",
        "generator": "a torch.Generator seeded by the seed and the weight's name",
        "grams": "sums of x x^T over calibration inputs, [experts, in, in]",
        "fishers": "diagonals of the Fisher information, [experts, *shape]",
    }
)
"""Keywords that are no options of the user, and what they stand for."""


@dataclass(frozen=True)
class Rule:
    """What an option's value must be."""

    says: str
    """The rule in words, which follow "a number"."""
    holds: Callable[[Any], bool]
    """The rule as a test."""


Density = Annotated[float, Rule("above 0 and at most 1", lambda v: 0 < v <= 1)]
Chance = Annotated[float, Rule("at least 0 and below 1", lambda v: 0 <= v < 1)]
Share = Annotated[float, Rule("at least 0 and at most 1", lambda v: 0 <= v <= 1)]
Positive = Annotated[float, Rule("above 0", lambda v: v > 0)]
NotNegative = Annotated[float, Rule("at least 0", lambda v: v >= 0)]
Count = Annotated[int, Rule("at least 1", lambda v: v >= 1)]
CountOrZero = Annotated[int, Rule("at least 0", lambda v: v >= 0)]


@dataclass(frozen=True)
class Option:
    """An option of a method, as its function's signature states it."""

    name: str
    kind: type[float | int | bool]
    default: float | int | bool | None
    """What it is where the user gives none; None where it must be given."""
    rule: Rule | None
    """What its value must be, beside finite."""

    def parse(self, value: Value) -> float | int | bool:
        """Return a value in the option's type; text is read as a command line gives it.

        Raises MergeError for a value that the option cannot have.
        """
        try:
            result = self._converted(value)
        except ValueError:
            raise MergeError(f"{self.name} must be {self.wanted}, got {value!r}") from None
        if not math.isfinite(result) or (self.rule and not self.rule.holds(result)):
            raise MergeError(f"{self.name} must be {self.wanted}, got {value!r}")
        return result

    @property
    def wanted(self) -> str:
        """What its value must be, in words."""
        kind = {float: "a number", int: "a whole number", bool: "true or false"}[self.kind]
        return f"{kind} {self.rule.says}" if self.rule else kind

    def _converted(self, value: Value) -> float | int | bool:
        if type(value) is self.kind:
            return value
        if self.kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if self.kind is not bool and (isinstance(value, str) or type(value) is int):
            return self.kind(value)
        raise ValueError


@dataclass(frozen=True)
class Method:
    """A static merge, as a row of the table says it."""

    name: str
    function: Callable[..., Tensor | LowRank]
    """What merges one weight, of one of the kinds above."""
    source: str
    """The paper that it comes from."""
    weights: Literal["sum", "mean", "none"] = "mean"
    """What the experts' weights are. "sum": factors of the deltas, any finite numbers. "mean":
    shares, none negative, which are divided by their sum before the method sees them. "none": the
    method knows no weights, and they must be left out."""
    weight: float = 1.0
    """Each expert's weight, where none are given."""
    vectors: Literal["same", "mean"] = "same"
    """How weights are merged that are no linear maps of a decoder layer (norms, biases; embeddings,
    whose rows are tokens). "same": as all are. "mean": by their weighted mean."""
    at_least: int = 1
    """The least number of experts."""
    at_most: int | None = None
    """The greatest number of experts, if there is one."""
    blocks: bool = False
    """Whether entries are merged one by one, so that the rows of a weight may come in blocks."""
    thin: Callable[..., Tensor | LowRank] | None = None
    """The same method on the factors of experts that are all low-rank."""
    check: Callable[..., str | None] = lambda experts, **options: None
    """Says what is wrong with the number of experts and the options together; None if nothing."""

    @cached_property
    def kind(self) -> Literal["deltas", "each", "linear", "factors"]:
        """What kind of function it is, by the name of its first parameter."""
        first = next(iter(inspect.signature(self.function).parameters))
        kinds: dict[str, Literal["deltas", "each", "linear", "factors"]]
        kinds = {"deltas": "deltas", "delta": "each", "weights": "linear", "factors": "factors"}
        return kinds[first]

    @cached_property
    def needs(self) -> frozenset[str]:
        """Which of `RESERVED` the function asks for."""
        return frozenset(_keywords(self.function) & RESERVED.keys())

    @cached_property
    def options(self) -> dict[str, Option]:
        """The user's options by name."""
        hints = get_type_hints(self.function, include_extras=True)
        parameters = inspect.signature(self.function).parameters
        names = [
            name for name in parameters if name in _keywords(self.function) and name not in RESERVED
        ]
        return {name: _option(name, hints[name], parameters[name]) for name in names}


def _keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _option(name: str, hint: Any, parameter: inspect.Parameter) -> Option:
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    kind, rule = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    return Option(name, kind, default, rule)
