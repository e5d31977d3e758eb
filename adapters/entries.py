"""Named mixes that a program made: one file each in `<library>/router/entries`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import manifest
from adapters.coefficient import Coefficient, from_json, numbers, to_json
from adapters.errors import LibraryError
from adapters.files import NAME, confined
from adapters.store import RESERVED_NAMES
from adapters.writing import put

ENTRIES = Path("router") / "entries"


@dataclass(frozen=True)
class Entry:
    """A mix with a name.

    coefficients: by expert   digests: of those experts' weights when the entry was made   source: how, and with what result

    Raises LibraryError for a name that clients could not use, no expert, numbers that are not finite, digests of others.
    """

    name: str
    coefficients: Mapping[str, Coefficient]
    digests: Mapping[str, str]
    source: Mapping[str, str | int | float | bool]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise LibraryError(
                f"entry name {self.name!r}: letters, digits, dot, dash and underscore are allowed; "
                f"{', '.join(sorted(RESERVED_NAMES))} are taken"
            )
        if not self.coefficients or self.coefficients.keys() != self.digests.keys():
            raise LibraryError(f"entry {self.name!r} must have a coefficient and a digest for each of one expert or more")
        if not all(math.isfinite(value) for c in self.coefficients.values() for value in numbers(c)):
            raise LibraryError(f"entry {self.name!r} has a coefficient that is no finite number")


@dataclass(frozen=True)
class _Content:
    coefficients: Mapping[str, int | float | dict | list]  # type: ignore[type-arg]
    digests: Mapping[str, str]
    source: Mapping[str, str | int | float | bool]


def read_entries(folder: Path) -> dict[str, Entry]:
    """All entries by name, in the order of the names; none without a folder. Raises LibraryError naming a damaged file."""
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def write_entry(folder: Path, entry: Entry, *, replace: bool = False) -> None:
    """Put an entry beside those there are. Raises LibraryError if its name is taken and it may not replace that one."""
    coefficients: dict[str, Any] = {name: to_json(c) for name, c in entry.coefficients.items()}
    write_json(folder / f"{entry.name}.json", _Content(coefficients, entry.digests, entry.source), replace=replace)


def write_json(file: Path, value: Any, *, replace: bool) -> None:
    """Write a dataclass, as `adapters.writing.put` does."""
    put(file, lambda part: part.write_text(manifest.to_json(value)), replace=replace)


def _read(file: Path) -> Entry:
    confined(file.parent, file.name)
    content = manifest.read_json(_Content, file)
    try:
        coefficients = {name: from_json(value) for name, value in content.coefficients.items()}
        return Entry(file.stem, coefficients, content.digests, content.source)
    except ValueError as error:
        raise LibraryError(f"{file} cannot be used: {error}") from None
