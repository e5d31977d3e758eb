"""Static merges of all experts of a library, as experts of a copy of it.

A server of the copy answers with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError, MergeError
from adapters.expert import Expert
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import LowRankForm
from adapters.library.library import Library
from adapters.library.manifest import About, Source
from adapters.library.versions import VersionStore
from adapters.merge.merged import MergedDeltas, merge_experts
from adapters.merge.registry import METHODS
from tta_serve.evaluation.merge_variants import MergeVariant
from tta_serve.offline.calibration import MEASURED, MergeCalibration

# One of each family that needs no calibration, which takes minutes: means, signs, spectra.
QUICK_METHODS = ("linear", "ties", "iso_c")


@dataclass(frozen=True)
class MergedLibrary:
    """A copy of a library with merges of its experts among them."""

    root: Path
    """The copy's folder."""
    kept: dict[MergeVariant, float]
    """By merge, the share of its energy that its factors hold."""
    refused: dict[MergeVariant, str]
    """By what made no merge, why."""
    experts: int
    """How many experts the copy has, merges among them."""
    ranks: int
    """The sum over them of each one's highest rank."""


def list_methods(experts: int) -> list[str]:
    """List the methods that merge so many experts."""
    rows = METHODS.values()
    return [row.name for row in rows if row.at_least <= experts <= (row.at_most or experts)]


def build_merged_library(
    source: Library,
    root: Path,
    base: Checkpoint,
    variants: Sequence[MergeVariant],
    advance: Callable[[], None],
) -> MergedLibrary:
    """Copy a library, and add merges of all its low-rank experts.

    Parts of Twin-Merging are no experts of their own, and in no merge; nor are experts that act
    only from an invocation on.

    A method has its own weights, and what else a variant leaves open. Methods that are calibrated
    are so on the experts' own answers to their example prompts. Each merge is kept as factors of at
    most the sum of the experts' ranks: exact where the method stays in the experts' span.

    Args:
        source: The library.
        root: Where the copy is made; it must not be there.
        base: What the experts change.
        variants: What is merged.
        advance: Called after each merge.
    """
    shutil.copytree(source.root, root, ignore=shutil.ignore_patterns(".*"))
    store = VersionStore(root)
    experts = {
        name: expert
        for name, expert in source.experts.items()
        if name not in source.parts and not source.invocation(name)
    }
    form = LowRankForm(rank=sum(map(_highest_rank, experts.values())))
    parents = {name: expert.digest for name, expert in experts.items()}
    merger = _Merger(source, {name: LowRankDeltas(own) for name, own in experts.items()}, base)
    kept, refused = dict[MergeVariant, float](), dict[MergeVariant, str]()
    for variant in variants:
        made_by = Source("merge", method=variant.method, options=variant.options, parents=parents)
        about = About(source=made_by)
        try:
            manifest = store.add(variant.expert, merger.merge(variant), form, about, base)
        except (MergeError, ExpertError) as error:
            refused[variant] = str(error)
        else:
            kept[variant] = mean(manifest.report.kept.values())
        advance()
    whole = Library.open(root)
    return MergedLibrary(root, kept, refused, len(whole.names), sum(map(_highest_rank, whole)))


class _Merger:
    """Merges the same experts again and again, and measures once what several methods need."""

    def __init__(
        self, source: Library, experts: Mapping[str, LowRankDeltas], base: Checkpoint
    ) -> None:
        self._source = source
        self._experts = experts
        self._base = base
        self._needs = frozenset[str]()
        self._given: dict[str, Any] = {}

    def merge(self, variant: MergeVariant) -> MergedDeltas:
        """Return a merge.

        Raises:
            MergeError: The method cannot have the experts or the options.
            ExpertError: The experts cannot be calibrated.
        """
        given = self._measure(METHODS[variant.method].needs & MEASURED)
        return merge_experts(
            variant.method,
            [*self._experts.values()],
            options=variant.options,
            base=self._base,
            **given,
        )

    def _measure(self, needs: frozenset[str]) -> dict[str, Any]:
        if needs != self._needs:
            # What was measured before goes first: it may be as large as all experts together.
            self._given, self._needs = {}, frozenset()
            self._given = dict(self._calibration.measure(needs)) if needs else {}
            self._needs = needs
        return self._given

    @cached_property
    def _calibration(self) -> MergeCalibration:
        prompts = {name: self._source.examples(name) for name in self._experts}
        return MergeCalibration(self._base, self._experts, prompts)


def _highest_rank(expert: Expert) -> int:
    return max(factor.rank for factor in expert.factors.values())
