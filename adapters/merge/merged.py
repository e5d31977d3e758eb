"""A merge of experts, as the deltas that it makes, computed one weight at a time.

Memory: the deltas of one weight of all experts, float32, and the merged one. A linear method, and
one that changes each expert by itself, hold but two at a time; a method that merges entries one by
one takes low-rank experts by blocks of rows.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from adapters.coefficient import layer_of
from adapters.deltas import Deltas
from adapters.errors import MergeError
from adapters.expert import LowRank
from adapters.low_rank import ROUNDING
from adapters.merge.method import Method, Value
from adapters.merge.registry import METHODS, NOT_IMPLEMENTED

_BLOCK = 1 << 24  # entries of a block of rows, all experts together: 64 MiB


class BaseWeights(Protocol):
    """The base's weights, such as an `adapters.files.checkpoint.Checkpoint`."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every weight."""
        ...

    def read(self, weight: str) -> Tensor:
        """Return one weight in its own dtype."""
        ...


def merge_experts(  # noqa: PLR0913 - what methods can be given, each by its name
    method: str,
    experts: Sequence[Deltas],
    weights: Sequence[float] | None = None,
    options: Mapping[str, Value] = {},
    *,
    base: BaseWeights | None = None,
    grams: Mapping[str, Tensor] | None = None,
    fishers: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> "MergedDeltas":
    """Return the merge of experts, of which nothing is computed before a weight is asked for.

    It touches every weight that one of the experts touches; an expert that leaves it alone counts
    there as a delta of zeros.

    Args:
        method: A name in `METHODS`.
        experts: What to merge, in an order that matters to some methods.
        weights: One for each expert; without them, the method's own (`Method.weight`).
        options: The method's options by name; text is read as the option's type.
        base: The base's weights, where the method needs them; if given, the experts must fit it.
        grams: By weight, [experts, in, in]; a weight without them is merged as one that is no
            matrix, by the weighted mean.
        fishers: By weight, [experts, *shape], of every weight.
        seed: That of methods that draw at random; what is drawn for one weight does not depend on
            the others.

    Raises MergeError for a method, weights or options that cannot be used, and for experts that do
    not fit each other, the base, or the method.
    """
    row = _row(method)
    given = {"base": base, "grams": grams, "fishers": fishers}
    missing = sorted(name for name in row.needs & given.keys() if given[name] is None)
    if missing:
        raise MergeError(f"{method} needs {' and '.join(missing)}")
    _check_count(row, len(experts))
    shares, chosen = _weights(row, len(experts), weights), _options(row, len(experts), options)
    result = MergedDeltas(row, tuple(experts), shares, chosen, given, seed)
    result.check()
    return result


@dataclass(frozen=True)
class MergedDeltas:
    """The deltas of a merge, which `merge_experts` makes."""

    method: Method
    experts: tuple[Deltas, ...]
    weights: Tensor
    """[experts], float32, as the method takes them."""
    options: Mapping[str, float | int | bool]
    """All options of the method by name."""
    given: Mapping[str, Any]
    """The base, grams and fishers; None where they are not given."""
    seed: int
    """That of methods that draw at random."""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that is touched.

        A sum touches no weight where all experts have coefficient 0.
        """
        shapes = {
            weight: tuple(shape)
            for expert in self.experts
            for weight, shape in expert.shapes.items()
        }
        return {
            weight: shape
            for weight, shape in shapes.items()
            if not self._is_sum(weight, shape) or self._terms(weight)
        }

    def delta(self, weight: str) -> Tensor:
        """Return the merged delta, dense, float32; raise KeyError if the weight is not touched."""
        shape = self.shapes[weight]
        if self._is_sum(weight, shape):
            return self._sum(weight)
        thin = self._thin(weight)
        if thin is not None:
            return thin.dense() if isinstance(thin, LowRank) else thin

        supplied = self._supplied(weight)
        if self.method.kind == "each":
            return self._sum_of_each(weight, supplied)

        def merge(stack: Tensor) -> Tensor:
            result = self.method.function(stack, self.weights, **self.options, **supplied)
            assert isinstance(result, Tensor)
            return result

        factors = self._factors(weight)
        if factors:
            return _by_blocks(merge, factors, shape, _BLOCK if self.method.blocks else math.inf)
        stack = torch.zeros(len(self.experts), *shape)
        for row, expert in zip(stack, self.experts, strict=True):
            if weight in expert.shapes:
                row.copy_(expert.delta(weight))
        return merge(stack)

    def factors(self, weight: str) -> LowRank | None:
        """Return the merged delta as factors, exact, where the method makes such, else None.

        A sum sets those of its experts side by side.
        """
        shape = self.shapes[weight]
        if self._is_sum(weight, shape):
            return self._concatenated(weight)
        thin = self._thin(weight)
        return thin if isinstance(thin, LowRank) else None

    def check(self) -> None:
        """Raise MergeError if the experts do not fit each other, the base, or the method."""
        check_one_base(
            {f"expert {k}": expert for k, expert in enumerate(self.experts)}, self.given["base"]
        )
        for weight, shape in self.shapes.items():
            self._check_given(weight, shape)

    def _check_given(self, weight: str, shape: tuple[int, ...]) -> None:
        """Raise MergeError if a weight has not the factors, grams or fishers that it takes."""
        if self._is_sum(weight, shape):
            return
        if self.method.kind == "factors" and self._factors(weight) is None:
            raise MergeError(
                f"{self.method.name} merges low-rank experts; {weight} is not known as factors:"
                " compress them first"
            )
        wanted = {
            "grams": (len(self.experts), *shape[1:] * 2),
            "fishers": (len(self.experts), *shape),
        }
        for name in self.method.needs & wanted.keys():
            got = tuple(self.given[name][weight].shape) if weight in self.given[name] else None
            if got != wanted[name]:
                raise MergeError(
                    f"{self.method.name}: {name} of {weight} must be {wanted[name]}, got {got}"
                )

    def _is_sum(self, weight: str, shape: tuple[int, ...]) -> bool:
        """Whether the merge of this weight is a plain sum of coefficients times deltas."""
        is_map = len(shape) == 2 and _layer(weight) is not None
        if self.method.kind == "linear" or (self.method.vectors == "mean" and not is_map):
            return True
        return "grams" in self.method.needs and weight not in self.given["grams"]

    def _terms(self, weight: str) -> list[tuple[float, Deltas]]:
        """Return the coefficients and experts of a plain sum, without those that add nothing."""
        if self.method.kind == "linear":
            coefficients = self.method.function(
                self.weights, **self.options, **self._supplied(weight)
            )
            assert isinstance(coefficients, Tensor)
        else:
            coefficients = self.weights / self.weights.sum()
        terms = zip(coefficients.tolist(), self.experts, strict=True)
        return [
            (coefficient, expert)
            for coefficient, expert in terms
            if coefficient and weight in expert.shapes
        ]

    def _sum(self, weight: str) -> Tensor:
        factors = self._concatenated(weight)
        if factors is not None:
            return factors.dense()
        (coefficient, first), *terms = self._terms(weight)
        total = first.delta(weight).mul_(coefficient)
        # Only what is taken away leaves rounding where there is nothing.
        is_difference = min([coefficient, *(c for c, _ in terms)]) < 0
        largest = float(total.abs().max()) if is_difference else 0.0
        for coefficient, expert in terms:
            part = expert.delta(weight)
            if is_difference:
                largest = max(largest, abs(coefficient) * float(part.abs().max()))
            total.add_(part, alpha=coefficient)
        is_rounding = is_difference and float(total.abs().max()) <= ROUNDING * largest
        return total.zero_() if is_rounding else total

    def _sum_of_each(self, weight: str, supplied: Mapping[str, Any]) -> Tensor:
        total = torch.zeros(self.shapes[weight])
        for w, expert in zip(self.weights.tolist(), self.experts, strict=True):
            if weight in expert.shapes:
                part = self.method.function(expert.delta(weight), **self.options, **supplied)
                assert isinstance(part, Tensor)
                total.add_(part, alpha=w)
        return total

    def _concatenated(self, weight: str) -> LowRank | None:
        """Return a plain sum as factors: [c_1 b_1 | ... | c_K b_K] [a_1; ...; a_K]."""
        terms = [
            (coefficient, expert.factors(weight)) for coefficient, expert in self._terms(weight)
        ]
        known = [(coefficient, factor) for coefficient, factor in terms if factor is not None]
        if len(known) < len(terms):
            return None
        return LowRank(
            torch.cat([f.a.float() for _, f in known]),
            torch.cat([c * f.b.float() for c, f in known], 1),
        )

    def _factors(self, weight: str) -> list[LowRank] | None:
        """Return each expert's factors, of rank 0 for one that leaves the weight alone.

        None if one of the experts is not known by factors.
        """
        nothing = LowRank(
            torch.zeros(0, self.shapes[weight][-1]), torch.zeros(self.shapes[weight][0], 0)
        )
        every = [
            expert.factors(weight) if weight in expert.shapes else nothing
            for expert in self.experts
        ]
        known = [factor for factor in every if factor is not None]
        return known if len(known) == len(every) else None

    def _thin(self, weight: str) -> LowRank | Tensor | None:
        """Return the merge made on factors.

        None where the method has no such way, or an expert is not known by its own.
        """
        function = self.method.function if self.method.kind == "factors" else self.method.thin
        factors = self._factors(weight) if function else None
        return function(factors, self.weights, **self.options) if function and factors else None

    def _supplied(self, weight: str) -> dict[str, Any]:
        """Return what the method's function asks for beside options."""
        return {name: self._supply(name, weight) for name in self.method.needs}

    def _supply(self, name: str, weight: str) -> Any:
        if name == "base":
            return self.given["base"].read(weight).float()
        if name == "generator":
            seed = hashlib.sha256(f"{self.seed}|{weight}".encode()).digest()[:8]
            return torch.Generator().manual_seed(int.from_bytes(seed, "little"))
        if name == "layer":
            return _layer(weight)
        return self._layers if name == "layers" else self.given[name][weight]

    @cached_property
    def _layers(self) -> int:
        """How many decoder layers the base has.

        Where it is not given, how many there are up to the last that an expert touches.
        """
        base = self.given["base"]
        names = (
            [name for expert in self.experts for name in expert.shapes]
            if base is None
            else base.shapes
        )
        return max((layer + 1 for layer in map(_layer, names) if layer is not None), default=0)


def check_one_base(experts: Mapping[str, Deltas], base: BaseWeights | None = None) -> None:
    """Raise MergeError if experts, by what they are called, do not change one base."""
    names = {} if base is None else base.shapes
    first = {weight: ("the base", tuple(shape)) for weight, shape in names.items()}
    for called, expert in experts.items():
        for weight, shape in expert.shapes.items():
            if base is not None and weight not in first:
                raise MergeError(f"{called} touches {weight}, which the base does not have")
            owner, wanted = first.setdefault(weight, (called, tuple(shape)))
            if tuple(shape) != wanted:
                raise MergeError(
                    f"{weight} is {tuple(shape)} in {called} and {wanted} in {owner}: not of one"
                    " base"
                )


def _by_blocks(
    merge: Callable[[Tensor], Tensor], factors: Sequence[LowRank], shape: Sequence[int], most: float
) -> Tensor:
    """Return merge(stack of b_k a_k), [out, in], computed by blocks of rows.

    A block has at most so many entries, all experts together.
    """
    out, in_ = shape
    rows = int(max(1, min(out, most // (len(factors) * in_))))
    stack = torch.empty(len(factors), rows, in_)
    result = torch.empty(out, in_)
    for start in range(0, out, rows):
        block = stack[:, : out - start]
        for row, factor in zip(block, factors, strict=True):
            torch.mm(factor.b[start : start + rows].float(), factor.a.float(), out=row)
        result[start : start + rows] = merge(block)
    return result


def _layer(weight: str) -> int | None:
    """Return the decoder layer of a weight, of a model with a head: its names have a prefix."""
    return layer_of(weight) if ".layers." in weight else None


def _row(method: str) -> Method:
    """Return a method by its name; raise MergeError if there is none."""
    if method in NOT_IMPLEMENTED:
        raise MergeError(f"{method} is not implemented: {NOT_IMPLEMENTED[method]}")
    if method not in METHODS:
        raise MergeError(f"unknown method {method!r}; there are: {', '.join(METHODS)}")
    return METHODS[method]


def _check_count(row: Method, experts: int) -> None:
    if experts < row.at_least or (row.at_most is not None and experts > row.at_most):
        wanted = f"{row.at_least}" if row.at_least == row.at_most else f"at least {row.at_least}"
        raise MergeError(f"{row.name} merges {wanted} experts, got {experts}")


def _weights(row: Method, experts: int, weights: Sequence[float] | None) -> Tensor:
    """Return the weights that the method takes, [experts], float32; those of a mean sum to 1."""
    if weights is not None and row.weights == "none":
        raise MergeError(f"{row.name} takes no weights")
    values = [row.weight] * experts if weights is None else list(weights)
    if len(values) != experts:
        raise MergeError(f"{len(values)} weights for {experts} experts; each takes one")
    if not all(map(math.isfinite, values)):
        raise MergeError(f"weights must be finite numbers, got {values}")
    total = sum(values)
    if row.weights == "sum":
        if total == 0 and (row.vectors == "mean" or "grams" in row.needs):
            raise MergeError(
                f"{row.name} merges some weights by their weighted mean: the weights must not sum"
                f" to 0, got {values}"
            )
        return torch.tensor(values, dtype=torch.float32)
    if min(values) < 0 or total == 0:
        raise MergeError(
            f"{row.name} takes a mean: no weight may be negative and not all 0, got {values}"
        )
    return torch.tensor([value / total for value in values])


def _options(
    row: Method, experts: int, options: Mapping[str, Value]
) -> dict[str, float | int | bool]:
    """Return all options of a method, in their types, with defaults for those not given."""
    unknown = options.keys() - row.options.keys()
    if unknown:
        known = ", ".join(row.options) or "none"
        raise MergeError(
            f"{row.name} has no option {', '.join(sorted(unknown))}; its options: {known}"
        )

    values = {}
    for name, option in row.options.items():
        value = options.get(name, option.default)
        if value is None:
            raise MergeError(f"{row.name} needs the option {name}: {option.wanted}")
        values[name] = option.parse(value)
    wrong = row.check(experts, **values)
    if wrong:
        raise MergeError(f"{row.name}: {wrong}")
    return values
