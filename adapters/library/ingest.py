"""From folders and other experts to new experts of a library.

What is to be added is first a `Draft`, which costs little: deltas are read one weight at a time.
Writing it is what takes time, and the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.deltas import Deltas, LowRankDeltas
from adapters.errors import ExpertError, LibraryError
from adapters.expert import LowRank
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import Form, LowRankForm
from adapters.files.facts import is_peft_folder
from adapters.files.peft_config import read_settings
from adapters.files.servable import ServableWeights
from adapters.library.library import EXAMPLES_FILE, Library, open_expert_folder, read_examples
from adapters.library.manifest import About, Manifest, Source, TwinPart
from adapters.library.names import check_name, name_exclusive, name_shared
from adapters.library.twins import name_family
from adapters.library.versions import NewVersion, VersionStore

Score = Callable[[Deltas], Mapping[str, float]]
"""Measures the deltas that were written."""


@dataclass(frozen=True)
class OwnerNotes:
    """What the owner of a new expert says of it."""

    licence: str | None = None
    description: str | None = None
    examples: Path | None = None
    """A file of prompts that it is for, one a line."""
    alone: bool = False
    """Whether it may be used only alone."""

    def describe(self, source: Source) -> About:
        """Return what a manifest says of an expert from this source.

        Raises:
            LibraryError: The prompts cannot be read, or are too many or too long.
        """
        prompts = tuple(read_examples(self.examples)) if self.examples else ()
        return About(
            source=source,
            licence=self.licence,
            description=self.description,
            examples=prompts,
            alone=self.alone,
        )


@dataclass(frozen=True)
class Draft:
    """An expert before it is written."""

    name: str
    deltas: Deltas
    form: Form
    about: About
    base: Checkpoint | None = None
    """What the deltas change; None for what is made of the library's own experts."""


class WatchedDeltas:
    """Deltas that tell how many of their weights have been asked for.

    Args:
        deltas: All else is theirs.
        tell: Called with the number of different weights.
    """

    def __init__(self, deltas: Deltas, tell: Callable[[int], None]) -> None:
        self._deltas = deltas
        self._tell = tell
        self._seen: set[str] = set()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._deltas.shapes

    def delta(self, weight: str) -> Tensor:
        self._see(weight)
        return self._deltas.delta(weight)

    def factors(self, weight: str) -> LowRank | None:
        self._see(weight)
        return self._deltas.factors(weight)

    def __getattr__(self, name: str) -> Any:
        # Some deltas know more, as a fine-tune does its size.
        return getattr(self._deltas, name)

    def _see(self, weight: str) -> None:
        self._seen.add(weight)
        self._tell(len(self._seen))


def draft_folder(path: Path, name: str, base: Checkpoint, form: Form, notes: OwnerNotes) -> Draft:
    """Draft an expert from a PEFT LoRA folder, or from the base after a full fine-tune.

    A file `examples.txt` in the folder holds its prompts where the notes name none.

    Raises:
        ExpertError: The folder is neither, or cannot be represented exactly.
        LibraryError: The prompts cannot be used.
    """
    source, deltas = open_expert_folder(path, base, partial=isinstance(form, LowRankForm))
    invocation = read_settings(path, name).invocation if is_peft_folder(path) else ()
    if invocation and not isinstance(form, LowRankForm):
        raise ExpertError(
            f"expert {name!r} acts only from its invocation on, which low-rank factors alone can:"
            " give --rank or --energy"
        )
    if isinstance(deltas, LowRankDeltas):
        ServableWeights.of(base).check(name, deltas.shapes)
    own = path / EXAMPLES_FILE
    if notes.examples is None and own.is_file():
        notes = replace(notes, examples=own)
    about = replace(notes.describe(source), invocation=invocation)
    return Draft(name, deltas, form, about, base)


def draft_compression(library: Library, name: str, form: LowRankForm, new_name: str) -> Draft:
    """Draft factors of a lower rank of an expert of any form.

    Args:
        library: Where the expert is.
        name: The expert's.
        form: The rank or the energy that is kept.
        new_name: The new expert's, or the same for a new version.

    Raises:
        ExpertError: There is no such expert.
        LibraryError: It is a part of Twin-Merging, which keeps its name.
    """
    deltas, known = library.deltas(name), library.manifest(name)
    if known.twin and new_name != known.name:
        raise LibraryError(
            f"{known.name} is a part of Twin-Merging, by its name: it can be compressed in place,"
            f" not as {new_name!r}"
        )
    given = {"rank": form.rank, "energy": form.energy}
    options = {key: value for key, value in given.items() if value is not None}
    source = Source("compress", options=options, parents={name: known.digest})
    return Draft(new_name, deltas, form, _inherit(known, source))


def draft_merge(  # noqa: PLR0913 - all that a merge is made of
    library: Library,
    name: str,
    merged: Deltas,
    form: Form,
    notes: OwnerNotes,
    *,
    method: str,
    options: Mapping[str, str | int | float | bool],
    parents: Sequence[str],
    base: Checkpoint | None,
) -> Draft:
    """Draft the merge of some of a library's experts.

    Args:
        library: Where the parents are.
        name: The new expert's.
        merged: What `adapters.merge.merged.merge_experts` made of them.
        form: How it is kept.
        notes: What its owner says of it.
        method: The method that made it.
        options: What the method was told, by name.
        parents: The names of the experts.
        base: What the merge was checked against, if anything.

    Raises:
        LibraryError: The prompts cannot be used, or a parent cannot or may not be merged.
    """
    check_mergeable(library, parents)
    digests = {parent: library.manifest(parent).digest for parent in parents}
    source = Source("merge", method=method, options=options, parents=digests)
    return Draft(name, merged, form, notes.describe(source), base)


def draft_twins(
    library: Library,
    prefix: str,
    twins: tuple[Deltas, Mapping[str, Deltas]],
    form: LowRankForm,
    shared_weight: float,
) -> list[Draft]:
    """Draft the parts that Twin-Merging makes: what experts share, then what each knows beyond it.

    Args:
        library: Where the experts are.
        prefix: The parts are called PREFIX-shared, and PREFIX-NAME for each expert.
        twins: The shared part and the exclusive ones by the experts' names, as
            `adapters.merge.twin.build_twins` returns them.
        form: The rank of each part.
        shared_weight: How much of the sum of all experts is shared.

    Raises LibraryError if an expert cannot or may not be merged.
    """
    shared, exclusive = twins
    check_mergeable(library, [*exclusive])
    known = {name: library.manifest(name) for name in exclusive}
    options: dict[str, float] = {"shared_weight": shared_weight}
    if form.rank is not None:
        options["rank"] = form.rank
    parents = {name: manifest.digest for name, manifest in known.items()}
    source = Source("twin", method="task_arithmetic", options=options, parents=parents)
    family = name_family(source)
    drafts = [
        Draft(
            name_shared(prefix),
            shared,
            form,
            About(source=source, twin=TwinPart("shared", prefix, family)),
        )
    ]
    for name, deltas in exclusive.items():
        own = known[name]
        part = TwinPart("exclusive", prefix, family, own.name, own.digest)
        about = replace(_inherit(own, source), twin=part)
        drafts.append(Draft(name_exclusive(prefix, name), deltas, form, about))
    return drafts


def check_mergeable(library: Library, names: Sequence[str]) -> None:
    """Check that experts can be merged into weights, which act on all tokens, and may be.

    Raises LibraryError if one acts only from its invocation on, or may be used only alone.
    """
    invoked = [name for name in names if library.invocation(name)]
    if invoked:
        raise LibraryError(
            f"{', '.join(invoked)}: made to act only from an invocation on (aLoRA), so it cannot be"
            " merged into weights; name others, or mix it per request, which heeds the invocation"
        )
    lone = [name for name in names if name in library.alone]
    if lone and len(names) > 1:
        raise LibraryError(
            f"{', '.join(lone)}: may be used only alone, says its owner (--alone); name others"
        )


def check_twin_names(library: Library, prefix: str, names: Sequence[str]) -> None:
    """Check that the parts of these experts can be called `PREFIX-...`.

    Raises LibraryError for a name that cannot be used or that two parts would have, and for an
    exclusive part that would be left behind by another shared one.
    """
    new = [name_shared(prefix), *(name_exclusive(prefix, name) for name in names)]
    for name in new:
        check_name(library.root, name)
        if new.count(name) > 1:
            raise LibraryError(f"two parts would be called {name!r}: take another prefix")
    left = [
        name
        for name, part in library.parts.items()
        if part.role == "exclusive" and part.prefix == prefix and name not in new
    ]
    if left:
        raise LibraryError(
            f"{', '.join(left)}: made with the {name_shared(prefix)} that this would replace; name"
            " the expert too, remove that part first, or take another prefix"
        )


def write_drafts(
    store: VersionStore,
    drafts: Sequence[Draft],
    score: Callable[[Draft], Score],
    tell: Callable[[Draft, int], None],
) -> list[Manifest]:
    """Write drafts as the next versions of their experts, all or none.

    Args:
        store: The versions of the library that they are added to.
        drafts: What is written.
        score: Returns what measures a draft once it is written, for its manifest's scores.
        tell: Called with a draft and the number of its weights that have been read.

    Returns the versions' manifests. Raises ExpertError or LibraryError as `VersionStore.add_all`.
    """
    return store.add_all(
        [
            NewVersion(
                draft.name,
                WatchedDeltas(draft.deltas, partial(tell, draft)),
                draft.form,
                draft.about,
                draft.base,
                score(draft),
            )
            for draft in drafts
        ]
    )


def _inherit(known: Manifest, source: Source) -> About:
    """Return what a manifest says of an expert made of that one."""
    return About(
        source=source,
        licence=known.licence,
        description=known.description,
        examples=known.examples,
        twin=known.twin,
        invocation=known.invocation,
        alone=known.alone,
    )
