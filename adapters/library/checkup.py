"""All that is wrong in a library, found in one pass over everything in its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapters.errors import AdapterError
from adapters.files.facts import NAME, is_peft_folder
from adapters.files.paths import check_expert_folder, check_folder, name_unreadable
from adapters.library.entries import ENTRIES, scan_entries
from adapters.library.library import Library
from adapters.library.names import BASE_FILE, RESERVED_NAMES, is_stray, list_places, read_number
from adapters.library.staging import StagingArea, is_pending
from adapters.library.versions import VersionStore, check_fit

if TYPE_CHECKING:
    from adapters.files.checkpoint import Checkpoint

ROUTER = ENTRIES.parent
"""Where `tta router` keeps what it makes, below a library's folder."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong in a library."""

    place: str
    """The path, or the name of an expert."""
    what: str
    """What is wrong with it."""
    remedy: str
    """What to do."""
    grade: Literal["wrong", "note"] = "wrong"
    """A note says what is as it should be and may surprise."""


@dataclass(frozen=True)
class Checkup:
    """What was found in a library."""

    experts: Mapping[str, str]
    """The digest of each expert that can be used in whatever form, by name."""
    faults: list[Fault]


def examine(root: Path, watch: Callable[[str], None] = lambda place: None) -> Checkup:
    """Look at everything in a library: the base, all weights of all versions, and what lies about.

    Args:
        root: The library's folder.
        watch: Called with the name of what is looked at next.

    Raises LibraryError if there is no such folder, or if it may not be read.
    """
    check_folder(root, "the library")
    examination = _Examination(root, watch)
    examination.run()
    return Checkup(examination.experts, examination.faults)


def explain_stale(digests: Mapping[str, str], experts: Mapping[str, str]) -> str | None:
    """Say of which experts something was made that are gone or have other weights now.

    Args:
        digests: Those of the experts when it was made, by name.
        experts: Those of the experts that there are.

    Returns None if all are what they were.
    """
    gone = sorted(digests.keys() - experts.keys())
    there = sorted(digests.keys() & experts.keys())
    changed = [name for name in there if digests[name] != experts[name]]
    parts = [f"{', '.join(gone)}, gone since"] * bool(gone)
    parts += [f"{', '.join(changed)}, changed since"] * bool(changed)
    return f"it was made of {' and '.join(parts)}" if parts else None


class _Examination:
    """One pass over a library, and what it has found so far."""

    def __init__(self, root: Path, watch: Callable[[str], None]) -> None:
        self.experts: dict[str, str] = {}
        self.faults: list[Fault] = []
        self._root = root
        self._watch = watch
        self._store = VersionStore(root)
        self._library = Library.scan(root)
        self._base: Checkpoint | None = None
        self._base_digest: str | None = None

    def run(self) -> None:
        self._watch("the base")
        self._examine_base()
        for name in list_places(self._root):
            self._watch(name)
            try:
                with name_unreadable(self._root / name):
                    self._examine_place(name)
            except AdapterError as error:
                self._add(name, str(error), self._advise(name))
        self._examine_staging()
        self._examine_entries()
        if not os.access(self._root, os.W_OK):
            remedy = "let the user who adds experts write the folder"
            self._add(str(self._root), "this user may not change the library", remedy, "note")

    def _add(
        self, place: str, what: str, remedy: str, grade: Literal["wrong", "note"] = "wrong"
    ) -> None:
        self.faults.append(Fault(place, what, remedy, grade))

    def _examine_base(self) -> None:
        try:
            known = self._store.base
        except AdapterError as error:
            remedy = "put the file back from a backup, or add the experts to a new library"
            self._add(BASE_FILE, str(error), remedy)
            return
        if known is None:
            return
        self._base_digest = known.digest
        try:
            self._base = self._store.checkpoint()
        except AdapterError as error:
            remedy = "put the base back as it was, or name where it is: tta experts base FOLDER"
            self._add(BASE_FILE, str(error), remedy)

    def _examine_place(self, name: str) -> None:
        """Look at one folder or file; raise AdapterError if it is an expert that cannot be used."""
        place = self._root / name
        library = self._library
        if name in library.problems:
            self._add(name, library.problems[name], self._advise(name))
        is_plain = place.is_dir() and is_peft_folder(place)
        if not is_plain and self._store.has_versions(name):
            self._examine_versions(name)
        elif name not in library.names and name not in library.problems:
            self._examine_unknown(place)
        if name not in library.names:
            return

        library.examples(name)
        if is_plain:
            deltas = library.deltas(name)
            if self._base is not None:
                check_fit(deltas, self._base)
        self.experts[name] = library.manifest(name).digest

    def _examine_versions(self, name: str) -> None:
        """Look at all versions of an expert, and at what lies beside them."""
        place = self._root / name
        for file in sorted(place.iterdir()):
            number = read_number(file)
            if number is None:
                if not is_stray(file.name):
                    what = "is no version of an expert"
                    self._add(f"{name}/{file.name}", what, "move it out of the library")
                continue
            if not is_pending(file):
                self._examine_version(name, number)

    def _examine_version(self, name: str, number: int) -> None:
        try:
            manifest = self._store.find(name, number)
            if manifest is None:
                return
            self._store.verify_version(manifest)
        except AdapterError as error:
            # That the current version cannot be read is known already.
            if str(error) != self._library.problems.get(name):
                self._add(f"{name}@{number}", str(error), self._advise(name))
            return
        if self._base_digest and manifest.base not in (None, self._base_digest):
            what = f"it changes another base, whose digest is {manifest.base}"
            self._add(f"{name}@{number}", what, "keep it in a library of that base")

    def _examine_unknown(self, place: Path) -> None:
        """Note what is no part of a library, unless it is known to do no harm."""
        if place.name in (BASE_FILE, ROUTER.name) or is_stray(place.name):
            return
        remedy = "move it out of the library, or add it: tta experts add"
        if not place.is_dir():
            self._add(place.name, "is no part of a library", remedy)
            return
        try:
            check_expert_folder(place)
            what = f"{place} holds a model's weights, and is no expert"
        except AdapterError as error:
            what = str(error)
        self._add(place.name, what, remedy)

    def _examine_staging(self) -> None:
        """Note what processes left that were killed while they wrote."""
        remedy = "delete it, or make any change of the library, which does so too"
        for left in StagingArea(self._root).find_dead():
            self._add(left.name, "was left by a process that was killed while it wrote", remedy)

    def _examine_entries(self) -> None:
        """Look at the mixes with a name, and at the experts that they are of."""
        entries, problems = scan_entries(self._root / ENTRIES)
        for name, reason in problems.items():
            self._add(f"{ENTRIES / name}", reason, _AGAIN)
        for name, entry in entries.items():
            if stale := explain_stale(entry.digests, self.experts):
                self._add(f"{ENTRIES / name}.json", stale, _AGAIN)

    def _advise(self, name: str) -> str:
        """Say what to do about an expert that cannot be used."""
        place = self._root / name
        if name in RESERVED_NAMES or not NAME.fullmatch(name):
            return "give the folder another name"
        if place.is_symlink() or not place.is_dir() or is_peft_folder(place):
            return "mend it, or move it out of the library"
        return (
            f"tta experts restore {name}@N, if a version is sound, add it again, or tta experts"
            f" remove {name}"
        )


_AGAIN = "make it again with tta router, or delete it"
