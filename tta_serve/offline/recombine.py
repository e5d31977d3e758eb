"""A few reusable merges of experts' attention and MLP components: `tta router recombine`.

MERGE (Qiu et al. 2026, arXiv 2602.06552) treats the components of experts one by one, and searches
two objectives, how well a merge does and how much it stores, with an evolutionary algorithm that a
surrogate assists. Its code could not be found; what is ours is said where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from scipy.optimize import differential_evolution
from torch import Tensor

from adapters.coefficient import Coefficient, Numbers, Pair, map_numbers
from adapters.mix import MixRules
from router.errors import RouterError
from router.policies.recombined import ENTRY_SETS, EntrySet, RecombinedEntry
from tta_serve.offline.mixed_model import MixedModel, Sample
from tta_serve.offline.pareto_front import measure_values
from tta_serve.offline.stored_entries import EntryFamily, name_entry
from tta_serve.offline.surrogate import TOTAL, find_undominated

_FAMILY = EntryFamily(ENTRY_SETS, "recombined", "set")
_GENERATIONS = 30
_POPULATION = 6  # for each number that is searched, as scipy counts it
_KERNEL = "cubic"  # smooth, so that its best need not be one of the merges that it was fitted to
_SMOOTHING = 1e-3
_WORTHLESS = 1e-9  # nats, of an entry that adds nothing to a set

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class RecombineSettings:
    """How to search, and what for."""

    thirds: bool = False
    """Whether the lower, middle and upper third of the layers have coefficients of their own."""
    samples: int | None = None
    """So many random merges are measured before the search; None for three a coefficient."""
    rounds: int = 2
    """How often the surrogate is searched, its best merges measured, and it fitted anew."""
    entries: int = 8
    """How many entries are kept at most."""
    most: int = 3
    """How many experts an entry has components of at most."""
    price: float = 0.01
    """Nats that each expert of an entry must bring."""

    @property
    def bands(self) -> int:
        """How many parts of the depth have coefficients of their own."""
        return 3 if self.thirds else 1


@dataclass(frozen=True)
class Design:
    """How the numbers that are searched, [experts, bands, 2], are coefficients."""

    experts: int
    bands: int
    """How many parts of the depth have coefficients of their own."""
    layers: int
    most: int
    """How many experts may have any coefficient."""
    rules: MixRules
    """The grid and the range."""

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.experts * self.bands * 2

    def repair(self, numbers: Array, most: int | None = None) -> Array:
        """Return numbers, [..., size], on the grid and of few experts.

        The experts with the largest sums stay.

        Args:
            numbers: Any, [..., size].
            most: How many experts may stay, by default as many as an entry may have.
        """
        parts = numbers.reshape(*numbers.shape[:-1], self.experts, -1)
        strength = parts.sum(-1)
        order = np.argsort(-strength, axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1, kind="stable")
        kept = np.where((rank < (most or self.most))[..., None], parts, 0.0)
        on_grid: Array = np.round(np.round(kept / self.rules.grid) * self.rules.grid, 10)
        return on_grid.clip(0.0, self.upper).reshape(numbers.shape)

    @property
    def upper(self) -> float:
        """The most that a number may be."""
        return self.rules.snap(min(TOTAL, self.rules.maximum))

    def spread(self, numbers: Array) -> Tensor:
        """Return the coefficients of every layer and half, [merges, layers, 2, experts].

        Args:
            numbers: [merges, size].
        """
        parts = torch.from_numpy(numbers).reshape(-1, self.experts, self.bands, 2)
        bands = torch.arange(self.layers) * self.bands // self.layers
        return parts[:, :, bands].permute(0, 2, 3, 1)

    def name_coefficients(self, numbers: Array, names: Sequence[str]) -> dict[str, Coefficient]:
        """Return the coefficients of the experts that a merge uses, by name.

        Args:
            numbers: [size].
            names: The experts.
        """
        by_layer = self.spread(numbers[None])[0]
        found: dict[str, Coefficient] = {}
        for k, name in enumerate(names):
            halves: list[Numbers] = [tuple(by_layer[:, half, k].tolist()) for half in (0, 1)]
            coefficient = map_numbers(Pair(*halves), self.rules.snap)
            if coefficient != 0.0:
                found[name] = coefficient
        return found

    def count_experts(self, numbers: Array) -> Array:
        """Return how many experts each merge, [merges, size], has components of."""
        used = (numbers.reshape(len(numbers), self.experts, -1) != 0).any(-1)
        return np.asarray(used.sum(-1), dtype=np.float64)

    def list_corners(self) -> Array:
        """Return the base, and each expert alone as it is."""
        whole = np.eye(self.experts).repeat(self.bands * 2, axis=1)
        return np.concatenate([np.zeros((1, self.size)), whole])

    def draw(self, count: int, random: np.random.Generator) -> Array:
        """Draw random merges: few experts, in random proportions, unequal in their parts."""
        proportions = random.dirichlet(np.ones(self.experts) / 2, count)
        total = TOTAL * random.random((count, 1))
        parts = 2 * random.random((count, self.experts, self.bands * 2))
        return self.repair(((proportions * total)[..., None] * parts).reshape(count, -1))


@dataclass(frozen=True)
class Recombination:
    """What a search found."""

    entries: EntrySet
    coefficients: dict[str, dict[str, Coefficient]]
    """By entry and expert."""
    errors: dict[str, float]
    """By task, the mean absolute error of the surrogate on what it proposed last, nats."""
    measured: int
    """How many merges were measured."""


def count_measurements(settings: RecombineSettings, experts: int) -> int:
    """Return how often `recombine` tells of its progress at most.

    Raises:
        RouterError: The settings and the experts do not suit each other.
    """
    size = experts * settings.bands * 2
    samples = settings.samples or 3 * size
    if experts < 2 or samples < size or settings.entries < experts:
        raise RouterError(
            f"a set of entries of {experts} experts: wanted are 2 experts, {size} samples and"
            f" {experts} entries at least, got {samples} samples and {settings.entries} entries"
        )
    proposals = settings.rounds * len(_list_focuses(experts)) * min(settings.most, experts)
    return experts * (samples + experts + 1 + proposals)


def recombine(  # noqa: PLR0913 - one knob each
    name: str,
    mixed: MixedModel,
    samples: Sequence[Sequence[Sample]],
    rules: MixRules,
    settings: RecombineSettings,
    seed: int,
    tell: Callable[[], None] = lambda: None,
) -> Recombination:
    """Search merges of components, and keep the few that serve all tasks and pairs of tasks best.

    A merge has a coefficient of each expert's attention and of its MLPs, in each band of the depth.
    There are no labels: m_t, as `measure_values` has it, is how near it comes to expert t on that
    expert's own prompts. The two objectives are the mean of m over a focus (a task, a pair of
    tasks, or all) and the number of experts used. For each focus and number of experts the best
    merge by a surrogate of m (radial basis functions, scipy's) is searched by differential
    evolution, measured, and the surrogate fitted anew. Of what was measured and no other dominates,
    those are kept one by one that add most to the best value of all focuses, each expert at its
    price. The focuses, the set and its price are ours.

    Args:
        name: Of the set; its entries are NAME-01 and on.
        mixed: The base with the experts.
        samples: By expert, in the order of mixed.experts.
        rules: The grid and the range of coefficients.
        settings: How to search.
        seed: Of all draws.
        tell: Is called after each measurement.

    Raises:
        RouterError: The settings and the experts do not suit each other.
    """
    count_measurements(settings, len(samples))
    tasks = tuple(expert.name for expert in mixed.experts)
    most = min(settings.most, len(tasks))
    design = Design(len(tasks), settings.bands, mixed.layers, most, rules)
    random = np.random.default_rng(seed)

    def measure(numbers: Array) -> Array:
        values = measure_values(mixed, samples, design.spread(numbers), tell)
        return np.asarray(values.numpy(), dtype=np.float64)

    # Measure the base, the experts and random merges.
    count = settings.samples or 3 * design.size
    known = np.unique(np.concatenate([design.list_corners(), design.draw(count, random)]), axis=0)
    values = measure(known)

    # Search the surrogate, measure what it proposes, and fit it anew.
    errors = np.zeros(len(tasks))
    for _ in range(settings.rounds):
        surrogate = RBFInterpolator(known, values, kernel=_KERNEL, smoothing=_SMOOTHING)
        proposed = _drop_known(_search(design, surrogate, known, values, random), known)
        if not len(proposed):
            break
        found = measure(proposed)
        errors = np.abs(found - surrogate(proposed)).mean(0)
        known, values = np.concatenate([known, proposed]), np.concatenate([values, found])

    # Keep a few of what no other dominates.
    kept = _choose_entries(design, known, values, settings)
    named = {name_entry(name, n): i for n, i in enumerate(kept, 1)}
    used = design.count_experts(known)
    return Recombination(
        EntrySet(
            tasks,
            tuple(
                RecombinedEntry(
                    entry, int(used[i]), dict(zip(tasks, values[i].tolist(), strict=True))
                )
                for entry, i in named.items()
            ),
            {expert.name: expert.digest for expert in mixed.experts},
            settings.price,
        ),
        {entry: design.name_coefficients(known[i], tasks) for entry, i in named.items()},
        dict(zip(tasks, errors.tolist(), strict=True)),
        len(known),
    )


def _list_focuses(experts: int) -> list[tuple[int, ...]]:
    """Return every task, every pair of tasks, and all."""
    alone = [(k,) for k in range(experts)]
    pairs = list(combinations(range(experts), 2))
    return [*alone, *pairs, *([tuple(range(experts))] if experts > 2 else [])]


def _search(
    design: Design,
    surrogate: RBFInterpolator,
    known: Array,
    values: Array,
    random: np.random.Generator,
) -> Array:
    """Return the best merge by the surrogate for each focus and number of experts."""
    found = []
    bounds = [(0.0, design.upper)] * design.size
    for focus in _list_focuses(design.experts):
        columns = list(focus)
        best = known[values[:, columns].mean(1).argmax()]
        for most in range(1, design.most + 1):

            def lose(candidates: Array, most: int = most, columns: list[int] = columns) -> Array:
                predicted = surrogate(design.repair(candidates.T, most))
                return np.asarray(-predicted[:, columns].mean(1))

            result = differential_evolution(
                lose,
                bounds,
                maxiter=_GENERATIONS,
                popsize=_POPULATION,
                rng=random,
                polish=False,
                x0=design.repair(best, most),
                vectorized=True,
                updating="deferred",
            )
            found.append(design.repair(result.x, most))
    return np.unique(np.stack(found), axis=0)


def _drop_known(proposed: Array, known: Array) -> Array:
    there = {row.tobytes() for row in known + 0.0}
    return np.array([row for row in proposed + 0.0 if row.tobytes() not in there])


def _choose_entries(
    design: Design, known: Array, values: Array, settings: RecombineSettings
) -> list[int]:
    """Return which merges are kept, the one that adds most first.

    The objectives are the mean of m over each focus, and the number of experts used. What a set is
    worth is the mean over focuses of the best that one of its entries has, less its price.
    """
    focuses = _list_focuses(design.experts)
    used = design.count_experts(known)
    shares = np.zeros((len(focuses), design.experts))
    for row, focus in zip(shares, focuses, strict=True):
        row[list(focus)] = 1 / len(focus)
    of_focus = values @ shares.T
    objectives = torch.from_numpy(np.column_stack([of_focus, -used]))
    candidates = [i for i in find_undominated(objectives) if used[i]]
    worth = of_focus - settings.price * used[:, None]

    chosen: list[int] = []
    best = worth[used == 0].max(0)
    while candidates and len(chosen) < settings.entries:
        gains = [np.maximum(worth[i] - best, 0.0).mean() for i in candidates]
        top = int(np.argmax(gains))
        if chosen and gains[top] <= _WORTHLESS:
            break
        chosen.append(candidates.pop(top))
        best = np.maximum(best, worth[chosen[-1]])
    return chosen


def check_entries(root: Path, name: str, settings: RecombineSettings, *, replace: bool) -> None:
    """Check that a library can take a set of that name, as `EntryFamily.check`."""
    _FAMILY.check(root, name, settings.entries, replace=replace)


def store_entries(root: Path, name: str, found: Recombination, *, replace: bool) -> None:
    """Write a set and its entries, as `EntryFamily.store`."""
    _FAMILY.store(root, name, found.entries, found.coefficients, replace=replace)
