"""Which parts of Twin-Merging belong together, and what each of them means to a mix."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapters.errors import LibraryError
from adapters.library.manifest import Manifest, Source, TwinPart


def name_family(source: Source) -> str:
    """Return the SHA-256 of what parts were made of, and how."""
    made = [source.method, dict(source.options), dict(source.parents)]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def find_parts(manifests: Mapping[str, Manifest]) -> dict[str, TwinPart]:
    """Return which experts are parts of Twin-Merging, by name."""
    return {name: manifest.twin for name, manifest in manifests.items() if manifest.twin}


def explain_orphans(parts: Mapping[str, TwinPart]) -> dict[str, str]:
    """Return why exclusive parts cannot be used: their shared one is not there, or another.

    Args:
        parts: All parts that are there, by name.

    Returns the reasons by name.
    """
    found = {}
    for name, part in parts.items():
        if part.role == "shared":
            continue
        shared = parts.get(part.shared)
        if shared is None or shared.role != "shared":
            found[name] = (
                f"{name} is what {part.original} knows beyond {part.shared}, which is not there:"
                f" take it back with tta experts restore {part.shared}, or remove {name}"
            )
        elif shared.family != part.family:
            found[name] = (
                f"{name} is what {part.original} knows beyond another {part.shared} than the one"
                f" that is there: make all parts again with tta experts twin --prefix {part.prefix}"
            )
    return found


def check_remaining(before: Mapping[str, TwinPart], after: Mapping[str, TwinPart]) -> None:
    """Raise LibraryError if a change would leave an exclusive part without its shared one.

    Args:
        before: The parts that there are, by name.
        after: Those that there would be.
    """
    known = explain_orphans(before)
    lost = {name: why for name, why in explain_orphans(after).items() if name not in known}
    if lost:
        names = ", ".join(lost)
        raise LibraryError(
            f"{names}: would be left without the shared part that it was made with; remove such"
            " exclusive parts first, or make all parts again under one prefix"
        )


@dataclass(frozen=True)
class TwinTies:
    """What parts of Twin-Merging mean to mixes and to policies."""

    shared: Mapping[str, str] = field(default_factory=dict)
    """By exclusive part, the shared one."""
    aside: frozenset[str] = frozenset()
    """The experts that policies do not choose: shared parts, and exclusive ones whose expert can be
    chosen itself."""

    @classmethod
    def of(cls, parts: Mapping[str, TwinPart], digests: Mapping[str, str]) -> "TwinTies":
        """Return the ties among experts.

        Args:
            parts: Which of them are parts, by name.
            digests: The digest of each expert that is there, by name.

        Raises LibraryError for an exclusive part whose shared one is not there.
        """
        here = {name: part for name, part in parts.items() if name in digests}
        for reason in explain_orphans(here).values():
            raise LibraryError(reason)
        shared = {name: part.shared for name, part in here.items() if part.role == "exclusive"}
        aside = {name for name, part in here.items() if _stands_aside(part, digests)}
        return cls(shared, frozenset(aside))


def list_classes(
    names: Iterable[str], parts: Mapping[str, TwinPart], digests: Mapping[str, str]
) -> list[str]:
    """Return which of some experts policies choose among, in their order.

    Args:
        names: Of the experts.
        parts: Which of them are parts of Twin-Merging.
        digests: The digest of each.
    """
    ties = TwinTies.of(parts, digests)
    return [name for name in names if name not in ties.aside]


def _stands_aside(part: TwinPart, digests: Mapping[str, str]) -> bool:
    if part.role == "shared":
        return True
    return part.original is not None and digests.get(part.original) == part.original_digest
