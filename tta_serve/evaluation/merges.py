"""Static merges of all experts of a library, as experts of a copy of it.

A server of the copy answers with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from adapters.deltas import LowRankDeltas
from adapters.errors import MergeError
from adapters.expert import Expert
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import LowRankForm
from adapters.library.library import Library
from adapters.library.manifest import About, Source
from adapters.library.versions import VersionStore
from adapters.merge.merged import merge_experts
from adapters.merge.registry import METHODS
from tta_serve.evaluation.arms import MERGE

# One of each kind: a mean, a sum, signs, random drops, spans of experts, spectra, angles.
QUICK_METHODS = (
    "linear",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "knots",
    "tsv_m",
    "iso_c",
    "model_stock",
)


@dataclass(frozen=True)
class MergedLibrary:
    """A copy of a library with merges of its experts among them."""

    root: Path
    """The copy's folder."""
    kept: dict[str, float]
    """By method, the share of the merge's energy that its factors hold."""
    refused: dict[str, str]
    """By method that made no merge, why."""
    experts: int
    """How many experts the copy has, merges among them."""
    ranks: int
    """The sum over them of each one's highest rank."""


def list_methods(experts: int) -> list[str]:
    """List the methods that merge so many experts without calibration prompts."""
    rows = (row for row in METHODS.values() if not row.needs & {"grams", "fishers"})
    return [row.name for row in rows if row.at_least <= experts <= (row.at_most or experts)]


def build_merged_library(
    source: Library,
    root: Path,
    base: Checkpoint,
    methods: Sequence[str],
    advance: Callable[[], None],
) -> MergedLibrary:
    """Copy a library, and add the merge of all its low-rank experts by each method.

    Parts of Twin-Merging are no experts of their own, and in no merge; nor are experts that act
    only from an invocation on.

    A method has its own weights and options. Each merge is kept as factors of at most the sum of
    the experts' ranks: exact where the method stays in the experts' span.

    Args:
        source: The library.
        root: Where the copy is made; it must not be there.
        base: What the experts change.
        methods: The methods' names.
        advance: Called after each method.
    """
    shutil.copytree(source.root, root, ignore=shutil.ignore_patterns(".*"))
    store = VersionStore(root)
    experts = {
        name: expert
        for name, expert in source.experts.items()
        if name not in source.parts and not source.invocation(name)
    }
    form = LowRankForm(rank=sum(map(_highest_rank, experts.values())))
    deltas = [LowRankDeltas(expert) for expert in experts.values()]
    parents = {name: expert.digest for name, expert in experts.items()}
    kept, refused = dict[str, float](), dict[str, str]()
    for method in methods:
        about = About(source=Source("merge", method=method, parents=parents))
        try:
            manifest = store.add(
                f"{MERGE}{method}", merge_experts(method, deltas, base=base), form, about, base
            )
        except MergeError as error:
            refused[method] = str(error)
        else:
            kept[method] = mean(manifest.report.kept.values())
        advance()
    whole = Library.open(root)
    return MergedLibrary(root, kept, refused, len(whole.names), sum(map(_highest_rank, whole)))


def _highest_rank(expert: Expert) -> int:
    return max(factor.rank for factor in expert.factors.values())
