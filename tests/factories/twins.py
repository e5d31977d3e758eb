"""Parts of Twin-Merging made for a test, from a library's own experts."""

from collections.abc import Sequence
from dataclasses import replace

from adapters.files.delta_forms import LowRankForm
from adapters.library.ingest import draft_twins, write_drafts
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from adapters.merge.twin import build_twins
from adapters.mix import MixRules
from router.policy import Context


def add_twins(
    library: Library, names: Sequence[str], prefix: str = "t", rank: int | None = None
) -> Library:
    """Add the parts of some experts, exact ones without a rank, and return the library anew."""
    twins = build_twins({name: library.deltas(name) for name in names}, 0.3)
    drafts = draft_twins(library, prefix, twins, LowRankForm(rank), 0.3)
    write_drafts(
        VersionStore(library.root), drafts, lambda draft: lambda written: {}, lambda *told: None
    )
    return Library.open(library.root)


def with_twins(context: Context, names: str, prefix: str = "t") -> Context:
    """Return a context in which these experts, a letter each, are there as parts alone."""
    parts = {name: f"{prefix}-{name}" for name in names}
    shared = f"{prefix}-shared"
    others = context.rules.names.difference(names)
    rules = MixRules(
        others.union(parts.values(), [shared]),
        context.rules.layers,
        shared=dict.fromkeys(parts.values(), shared),
        aside=frozenset([shared]),
    )
    examples = {parts.get(name, name): texts for name, texts in context.examples.items()}
    digests = {parts.get(name, name): digest for name, digest in context.digests.items()}
    return replace(
        context,
        rules=rules,
        examples={**examples, shared: []},
        digests={**digests, shared: shared},
    )
