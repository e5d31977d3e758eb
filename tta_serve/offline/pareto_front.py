"""A front of merges, each the best for another preference among tasks: `tta router pareto`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.mix import MixRules
from router.errors import RouterError
from router.policies.pareto import FRONTS, Front, Point
from tta_serve.offline.mixed_model import MixedModel, Sample
from tta_serve.offline.stored_entries import EntryFamily, name_entry
from tta_serve.offline.surrogate import (
    draw_merges,
    find_undominated,
    fit,
    monomials,
    r2,
    search_front,
    spread_preferences,
)

_FAMILY = EntryFamily(FRONTS, "pareto", "front")
_HELD_OUT = 0.2  # so much of the sampled merges judges the surrogate


@dataclass(frozen=True)
class FrontSize:
    """How much work to put into a front."""

    samples: int | None = None
    """So many random merges are measured to fit surrogates to; None for three a coefficient."""
    points: int = 12
    """How many points the front has at most."""

    def fit_to(self, experts: int) -> tuple[int, int]:
        """Return samples and points for so many experts.

        Raises:
            RouterError: They are too few.
        """
        coefficients = monomials(torch.zeros(experts)).shape[0]
        samples = self.samples or 3 * coefficients
        least = round(coefficients / (1 - _HELD_OUT)) + 2
        if experts < 2 or samples < least or self.points <= experts:
            raise RouterError(
                f"a front of {experts} experts: wanted are 2 experts, {least} samples and"
                f" {experts + 1} points at least, got {samples} samples and {self.points} points"
            )
        return samples, self.points

    def count_measurements(self, experts: int) -> int:
        """Return how often `make_front` tells of its progress."""
        samples, points = self.fit_to(experts)
        return experts * (samples + points + experts + 1)


@torch.no_grad()
def measure_values(
    mixed: MixedModel,
    samples: Sequence[Sequence[Sample]],
    merged: Tensor,
    tell: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return m_k(c) = -mean KL(p_k || p_c) over the tokens of expert k's answers, nats.

    It is 0 where the merge answers as the expert.

    Args:
        mixed: The base with the experts.
        samples: By expert.
        merged: The merges' coefficients c, [merges, experts], or [merges, layers, 2, experts].
        tell: Is called after each of them, for each expert.

    Returns:
        [merges, experts].
    """
    result = torch.zeros(len(merged), len(samples), dtype=torch.float64)
    for k, own in enumerate(samples):
        targets = [mixed.predict(sample, mixed.isolate(k)).logits.log_softmax(-1) for sample in own]
        for i, row in enumerate(merged.float()):
            for sample, target in zip(own, targets, strict=True):
                c = row if row.dim() > 1 else row.expand(mixed.layers, -1)
                found = mixed.predict(sample, c).logits.log_softmax(-1)
                result[i, k] -= float((target.exp() * (target - found)).sum(-1).mean()) / len(own)
            tell()
    return result


def make_front(  # noqa: PLR0913 - one knob each
    name: str,
    mixed: MixedModel,
    samples: Sequence[Sequence[Sample]],
    rules: MixRules,
    size: FrontSize,
    seed: int,
    tell: Callable[[], None] = lambda: None,
) -> Front:
    """Make a front by MAP (Li et al. 2024, arXiv 2406.07529).

    It fits quadratic surrogates of all tasks' `measure_values` over random merges, and takes their
    front. There are no labels: a task is measured by how near the merge is to its expert, so the
    experts themselves are the front's corners. The best merge by the surrogates for each other
    preference is put on the grid of `rules` and measured; what another point dominates, as
    measured, is left out.

    Args:
        name: Of the front.
        mixed: The base with the experts.
        samples: By expert, in the order of mixed.experts.
        rules: The grid of coefficients.
        size: How much work to put into it.
        seed: Of all draws.
        tell: Is called after each measurement.

    Raises:
        RouterError: The size is too small.
    """
    tasks = tuple(expert.name for expert in mixed.experts)
    count, points = size.fit_to(len(tasks))
    generator = torch.Generator().manual_seed(seed)

    # Measure the experts themselves, the base and random merges, and fit surrogates to that.
    corners = torch.eye(len(tasks), dtype=torch.float64)
    known = torch.cat(
        [corners, torch.zeros_like(corners[:1]), draw_merges(count, len(tasks), generator)]
    )
    measured = measure_values(mixed, samples, known, tell)
    fitted = len(known) - int(_HELD_OUT * count)
    quality = r2(fit(known[:fitted], measured[:fitted]), known[fitted:], measured[fitted:])
    surrogate = fit(known, measured)

    # Search the best merge for each preference, and measure those.
    preferences = spread_preferences(len(tasks), points)
    inner = search_front(surrogate, preferences[len(tasks) :], known, generator)
    found = torch.cat([corners, inner.apply_(rules.snap)])
    final = measure_values(mixed, samples, found, tell)
    predicted = surrogate(found)

    def by_task(row: Tensor) -> dict[str, float]:
        return dict(zip(tasks, row.tolist(), strict=True))

    # Keep what no other dominates; the base is no entry.
    of_each = zip(preferences, found, predicted, final, strict=True)
    rows = [tuple(map(by_task, parts)) for parts in of_each]
    kept = [i for i in find_undominated(final) if bool(found[i].any())]
    return Front(
        tasks=tasks,
        points=tuple(Point(name_entry(name, n), *rows[i]) for n, i in enumerate(kept, 1)),
        digests={expert.name: expert.digest for expert in mixed.experts},
        r2=by_task(quality),
    )


def check_front(root: Path, name: str, size: FrontSize, *, replace: bool) -> None:
    """Check that a library can take a front of that name, as `EntryFamily.check`."""
    _FAMILY.check(root, name, size.points, replace=replace)


def store_front(root: Path, name: str, front: Front, *, replace: bool) -> None:
    """Write a front and its entries, as `EntryFamily.store`."""
    entries = {
        point.entry: {expert: c for expert, c in point.coefficients.items() if c}
        for point in front.points
    }
    _FAMILY.store(root, name, front, entries, replace=replace)
