"""The files of several of a library's entries that `tta router` makes: fronts, and sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from adapters.errors import LibraryError
from adapters.files.safetensors_reader import confine
from adapters.library.manifest import read_json
from adapters.mix import Mix
from router.errors import RouterError
from router.policy import Context

Made = TypeVar("Made", bound="MadeEntries")


class MadeEntries(Protocol):
    """Some entries, and the experts that they were made of."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the experts."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """The digests of their weights when the entries were made."""
        ...


@dataclass(frozen=True)
class MadeKind:
    """One kind of such files, and how messages speak of it."""

    policy: str
    """The policy that reads them."""
    folder: str
    """Where they are among a library's artifacts."""
    command: str
    """What makes them."""
    one: str
    """One of them, such as `front`."""
    many: str
    """Several of them."""
    short: str
    """One of them, where it is clear what is meant."""
    subject: str
    """What a sentence about one begins with, before its name."""

    def read(self, made: type[Made], artifacts: Path | None, name: str) -> Made:
        """Read the one of a name.

        Raises:
            RouterError: There is none, or a damaged one.
        """
        make = f"{self.command} --name"
        if artifacts is None:
            raise RouterError(
                f"{self.policy} needs a library that keeps {self.many}; make one: {make} NAME"
            )
        folder = artifacts / self.folder
        try:
            file = confine(folder, f"{name}.json")
            if not file.exists():
                there = ", ".join(sorted(f.stem for f in folder.glob("*.json"))) or "none"
                raise RouterError(
                    f"there is no {self.one} {name!r}, there are: {there}; make it: {make} {name}"
                )
            return read_json(made, file)
        except LibraryError as error:
            raise RouterError(
                f"{error}; make the {self.short} again: {make} {name} --replace"
            ) from None

    def find_mixes(
        self, context: Context, name: str, made: MadeEntries, entries: Iterable[str]
    ) -> dict[str, Mix]:
        """Return the mix of each entry.

        Args:
            context: The library.
            name: Of what was read.
            made: What was read.
            entries: The names of its entries.

        Raises:
            RouterError: An entry is gone, or an expert is another than it was.
        """
        names = list(entries)
        stale = [task for task in made.tasks if context.digests.get(task) != made.digests[task]]
        missing = [entry for entry in names if entry not in context.entries]
        if stale or missing:
            gone = f"entries that are gone: {', '.join(missing)}"
            wrong = f"other weights of {', '.join(stale)}" if stale else gone
            raise RouterError(
                f"{self.subject} {name!r} is of {wrong}; make it again: {self.command}"
                f" --name {name} --replace"
            )
        return {entry: context.entries[entry] for entry in names}
