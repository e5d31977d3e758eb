"""Static merges of all experts of a library, as experts of a copy of it, so that a server answers with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from adapters.checkpoint import Checkpoint
from adapters.errors import MergeError
from adapters.expert import Expert
from adapters.forms import LowRankForm
from adapters.library import Library
from adapters.manifest import About, Source
from adapters.merge.driver import merged
from adapters.merge.table import METHODS
from adapters.store import Store
from tta_serve.evaluation.arms import MERGE

# One of each kind: a mean, a sum, signs, random drops, spans of experts, spectra, angles between experts.
QUICK_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "knots", "tsv_m", "iso_c", "model_stock")


@dataclass(frozen=True)
class MergedLibrary:
    """kept: by method, the share of the merge's energy that its factors hold   refused: why a method made none

    experts, ranks: of the whole library, ranks with the highest of each
    """

    root: Path
    kept: dict[str, float]
    refused: dict[str, str]
    experts: int
    ranks: int


def applicable(experts: int) -> list[str]:
    """The methods that merge so many experts by themselves, without calibration prompts."""
    rows = (row for row in METHODS.values() if not row.needs & {"grams", "fishers"})
    return [row.name for row in rows if row.at_least <= experts <= (row.at_most or experts)]


def build(source: Library, root: Path, base: Checkpoint, methods: Sequence[str], advance: Callable[[], None]) -> MergedLibrary:
    """Copy a library to `root`, and add the merge of all its experts by each method, with the weights and options it has.

    Each is kept as factors of at most the sum of the experts' ranks: exact where the method stays in the experts' span.
    advance: called after each method
    """
    shutil.copytree(source.root, root, ignore=shutil.ignore_patterns(".*"))
    store, form = Store(root), LowRankForm(rank=sum(map(_rank, source)))
    deltas = [source.deltas(name) for name in source.names]
    parents = {name: expert.digest for name, expert in source.experts.items()}
    kept, refused = dict[str, float](), dict[str, str]()
    for method in methods:
        about = About(source=Source("merge", method=method, parents=parents))
        try:
            manifest = store.add(f"{MERGE}{method}", merged(method, deltas, base=base), form, about, base)
        except MergeError as error:
            refused[method] = str(error)
        else:
            kept[method] = mean(manifest.report.kept.values())
        advance()
    whole = Library.open(root)
    return MergedLibrary(root, kept, refused, len(whole.names), sum(map(_rank, whole)))


def _rank(expert: Expert) -> int:
    return max(factor.rank for factor in expert.factors.values())
