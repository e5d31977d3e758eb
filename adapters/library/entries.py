"""Entries, which are mixes with a name that a program made: `<library>/router/entries/*.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.coefficient import Coefficient, from_json, numbers_of, to_json
from adapters.errors import LibraryError
from adapters.files.atomic import write_atomically
from adapters.files.facts import NAME, is_hidden
from adapters.files.safetensors_reader import confine
from adapters.library import manifest
from adapters.library.names import RESERVED_NAMES

ENTRIES = Path("router") / "entries"


@dataclass(frozen=True)
class Entry:
    """A mix with a name, and how it was made.

    Raises LibraryError for a name that clients could not use, without any expert, for numbers that
    are not finite, and for digests of other experts than those mixed.
    """

    name: str
    coefficients: Mapping[str, Coefficient]
    """The coefficient of each expert, by its name."""
    digests: Mapping[str, str]
    """The digest of each of those experts when the entry was made."""
    source: Mapping[str, str | int | float | bool]
    """How the entry was made, and with what result."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise LibraryError(
                f"entry name {self.name!r}: letters, digits, dot, dash and underscore are allowed; "
                f"{', '.join(sorted(RESERVED_NAMES))} are taken"
            )
        if not self.coefficients or self.coefficients.keys() != self.digests.keys():
            raise LibraryError(
                f"entry {self.name!r} must have a coefficient and a digest for each of one expert"
                " or more"
            )
        if not all(
            math.isfinite(value) for c in self.coefficients.values() for value in numbers_of(c)
        ):
            raise LibraryError(f"entry {self.name!r} has a coefficient that is no finite number")


@dataclass(frozen=True)
class _Content:
    """What an entry's file holds; its name is that of the file."""

    coefficients: Mapping[str, int | float | dict | list]  # type: ignore[type-arg]
    digests: Mapping[str, str]
    source: Mapping[str, str | int | float | bool]


def read_entries(folder: Path) -> dict[str, Entry]:
    """Return all entries of a folder by name, in the order of the names; none without a folder.

    Raises LibraryError that names a damaged file.
    """
    entries, problems = scan_entries(folder)
    for reason in problems.values():
        raise LibraryError(reason)
    return entries


def scan_entries(folder: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the entries of a folder that can be used, by name, and why others cannot, by file."""
    entries: dict[str, Entry] = {}
    problems: dict[str, str] = {}
    for file in sorted(folder.glob("*.json")):
        if is_hidden(file):
            continue
        try:
            entries[file.stem] = _read(file)
        except LibraryError as error:
            problems[file.name] = str(error)
    return entries, problems


def write_entry(folder: Path, entry: Entry, *, replace: bool = False) -> None:
    """Write an entry beside those that are in a folder.

    Raises LibraryError if its name is taken and it may not replace the one that has it.
    """
    coefficients: dict[str, Any] = {name: to_json(c) for name, c in entry.coefficients.items()}
    write_json(
        folder / f"{entry.name}.json",
        _Content(coefficients, entry.digests, entry.source),
        replace=replace,
    )


def write_json(file: Path, value: Any, *, replace: bool) -> None:
    """Write a dataclass as JSON, as `adapters.files.atomic.write_atomically` does."""
    text = manifest.to_json(value)
    write_atomically(
        file, lambda staged: staged.write_text(text, encoding="utf-8"), replace=replace
    )


def _read(file: Path) -> Entry:
    confine(file.parent, file.name)
    content = manifest.read_json(_Content, file)
    try:
        coefficients = {name: from_json(value) for name, value in content.coefficients.items()}
        return Entry(file.stem, coefficients, content.digests, content.source)
    except ValueError as error:
        raise LibraryError(f"{file} cannot be used: {error}") from None
