"""A front of merges, each the best for another preference among tasks: `tta router pareto`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.entries import ENTRIES, Entry, read_entries, write_entry, write_json
from adapters.mix import MixRules
from adapters.writing import check_free
from router.pareto import FRONTS, Front, Point
from router.policy import RouterError
from tta_serve.mixed import Mixed, Sample
from tta_serve.surrogate import directions, fit, merges, monomials, r2, search, undominated

_HELD_OUT = 0.2  # of the sampled merges judge the surrogate


@dataclass(frozen=True)
class Size:
    """samples: merges at random that surrogates are fitted to, None for three a coefficient   points: of a front, at most"""

    samples: int | None = None
    points: int = 12

    def of(self, experts: int) -> tuple[int, int]:
        """Samples and points for so many experts. Raises RouterError for too few."""
        coefficients = monomials(torch.zeros(experts)).shape[0]
        samples, least = self.samples or 3 * coefficients, round(coefficients / (1 - _HELD_OUT)) + 2
        if experts < 2 or samples < least or self.points <= experts:
            raise RouterError(
                f"a front of {experts} experts: wanted are 2 experts, {least} samples and {experts + 1} points at least, "
                f"got {samples} samples and {self.points} points"
            )
        return samples, self.points

    def measurements(self, experts: int) -> int:
        """How often `make_front` tells of its progress."""
        samples, points = self.of(experts)
        return experts * (samples + points + experts + 1)


@torch.no_grad()
def values(
    mixed: Mixed, samples: Sequence[Sequence[Sample]], merged: Tensor, tell: Callable[[], None] = lambda: None
) -> Tensor:
    """m_k(c) = -mean KL(p_k || p_c) over the tokens of expert k's answers, nats: 0 where the merge answers as the expert.

    merged: coefficients, [merges, experts]   tell: is called after each of them, for each expert. Returns [merges, experts]
    """
    result = torch.zeros(len(merged), len(samples), dtype=torch.float64)
    for k, own in enumerate(samples):
        targets = [mixed.outputs(sample, mixed.alone(k)).logits.log_softmax(-1) for sample in own]
        for i, row in enumerate(merged.float()):
            for sample, target in zip(own, targets, strict=True):
                found = mixed.outputs(sample, row.expand(mixed.layers, -1)).logits.log_softmax(-1)
                result[i, k] -= float((target.exp() * (target - found)).sum(-1).mean()) / len(own)
            tell()
    return result


def make_front(  # noqa: PLR0913 - one knob each
    name: str,
    mixed: Mixed,
    samples: Sequence[Sequence[Sample]],
    rules: MixRules,
    size: Size,
    seed: int,
    tell: Callable[[], None] = lambda: None,
) -> Front:
    """MAP (Li et al. 2024, arXiv 2406.07529): quadratic surrogates of all tasks' `values` over random merges, and their front.

    No labels: a task is measured by how near the merge is to its expert, so the experts themselves are the front's corners.
    The best merge by the surrogates for each other preference is put on the grid of `rules` and measured; what another
    point dominates, as measured, is left out.

    samples: by expert, in the order of mixed.experts. Raises RouterError as `Size.of`.
    """
    tasks = tuple(expert.name for expert in mixed.experts)
    (count, points), generator = size.of(len(tasks)), torch.Generator().manual_seed(seed)
    corners = torch.eye(len(tasks), dtype=torch.float64)
    known = torch.cat([corners, torch.zeros_like(corners[:1]), merges(count, len(tasks), generator)])
    measured = values(mixed, samples, known, tell)
    fitted = len(known) - int(_HELD_OUT * count)
    quality = r2(fit(known[:fitted], measured[:fitted]), known[fitted:], measured[fitted:])
    surrogate, preferences = fit(known, measured), directions(len(tasks), points)
    inner = search(surrogate, preferences[len(tasks) :], known, generator)
    found = torch.cat([corners, inner.apply_(rules.rounded)])
    final, predicted = values(mixed, samples, found, tell), surrogate(found)

    def by_task(row: Tensor) -> dict[str, float]:
        return dict(zip(tasks, row.tolist(), strict=True))

    of_each = zip(preferences, found, predicted, final, strict=True)
    rows = [tuple(map(by_task, parts)) for parts in of_each]
    kept = [i for i in undominated(final) if bool(found[i].any())]  # the base is no entry
    return Front(
        tasks=tasks,
        points=tuple(Point(_entry(name, n), *rows[i]) for n, i in enumerate(kept, 1)),
        digests={expert.name: expert.digest for expert in mixed.experts},
        r2=by_task(quality),
    )


def check_front(root: Path, name: str, size: Size, *, replace: bool) -> None:
    """Raises LibraryError if a library has a front of that name, or an entry as the front's would be called."""
    entries = (root / ENTRIES / f"{_entry(name, n)}.json" for n in range(1, size.points + 1))
    for file in (_file(root, name), *entries):
        check_free(file, replace=replace)


def store_front(root: Path, name: str, front: Front, *, replace: bool) -> None:
    """Write a front and its entries; what a front that it replaces had beyond them goes. Raises LibraryError as above."""
    folder, points = root / ENTRIES, {point.entry: point for point in front.points}
    for point in points.values():
        used = {expert: c for expert, c in point.coefficients.items() if c}
        source = {"method": "pareto", "front": name}
        write_entry(folder, Entry(point.entry, used, {e: front.digests[e] for e in used}, source), replace=replace)
    write_json(_file(root, name), front, replace=replace)
    for entry in read_entries(folder).values():
        if entry.source.get("front") == name and entry.name not in points:
            (folder / f"{entry.name}.json").unlink()


def _file(root: Path, name: str) -> Path:
    return root / ENTRIES.parent / FRONTS / f"{name}.json"


def _entry(front: str, number: int) -> str:
    return f"{front}-{number:02}"
