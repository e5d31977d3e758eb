"""Entries that are made together, and the file beside them that says what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.coefficient import Coefficient
from adapters.files.atomic import check_free
from adapters.library.entries import ENTRIES, Entry, scan_entries, write_entry, write_json
from router.policies.pareto import Front
from router.policies.recombined import EntrySet


@dataclass(frozen=True)
class EntryFamily:
    """What such entries, of one kind, are called in a library."""

    folder: str
    """Where their files are among the library's artifacts."""
    method: str
    """What an entry says that it was made by."""
    key: str
    """Under which an entry says which family it is of."""

    def check(self, root: Path, name: str, most: int, *, replace: bool) -> None:
        """Check that a library can take a family of that name, of so many entries at most.

        Raises:
            LibraryError: It has one, or an entry as one of the family's would be called.
        """
        entries = (root / ENTRIES / f"{name_entry(name, n)}.json" for n in range(1, most + 1))
        for file in (self._file(root, name), *entries):
            check_free(file, replace=replace)

    def store(
        self,
        root: Path,
        name: str,
        made: Front | EntrySet,
        entries: Mapping[str, Mapping[str, Coefficient]],
        *,
        replace: bool,
    ) -> None:
        """Write a family's file and its entries; what one that it replaces had beyond them goes.

        Args:
            root: The library's folder.
            name: The family's.
            made: What the file says.
            entries: By entry, the coefficients of the experts that it uses.
            replace: Whether it may replace another.

        Raises:
            LibraryError: As for `check`, or the disk refuses.
        """
        folder = root / ENTRIES
        for entry, used in entries.items():
            digests = {expert: made.digests[expert] for expert in used}
            source = {"method": self.method, self.key: name}
            write_entry(folder, Entry(entry, used, digests, source), replace=replace)
        write_json(self._file(root, name), made, replace=replace)

        for old in scan_entries(folder)[0].values():
            if old.source.get(self.key) == name and old.name not in entries:
                (folder / f"{old.name}.json").unlink()

    def _file(self, root: Path, name: str) -> Path:
        return root / ENTRIES.parent / self.folder / f"{name}.json"


def name_entry(family: str, number: int) -> str:
    """Return the name of a family's entry, counted from 1."""
    return f"{family}-{number:02}"
