"""What is known of the experts that are served, besides their weights."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from adapters.library.library import Library
from adapters.library.manifest import TwinPart


@dataclass(frozen=True)
class ExpertFacts:
    """What is known of one of them."""

    digest: str
    form: str = "low_rank"
    part: TwinPart | None = None
    """Which part of Twin-Merging it is, if any."""
    invocation: tuple[int, ...] = ()
    """The tokens from whose last place on it acts; none if it acts wherever its mix does."""
    licence: str | None = None
    """What its owner states."""
    alone: bool = False
    """Whether it may be used only alone."""


@dataclass(frozen=True)
class ExpertTable:
    """What is known of all of them."""

    facts: Mapping[str, ExpertFacts] = field(default_factory=dict)
    """By name."""

    @classmethod
    def read(
        cls, library: Library, digests: Mapping[str, str], before: "ExpertTable"
    ) -> "ExpertTable":
        """Read what is known of experts.

        Args:
            library: Where they come from.
            digests: The digest of each, by its name. That may be of another version than the
                library's current one: then the expert is what it was in the table before.
            before: That table.

        Raises ExpertError if a PEFT folder that is new cannot be read.
        """
        return cls({name: _read_one(library, name, digests[name], before) for name in digests})

    def narrow(self, names: Collection[str]) -> "ExpertTable":
        """Return what is known of these experts alone."""
        return ExpertTable({name: f for name, f in self.facts.items() if name in names})

    @property
    def parts(self) -> dict[str, TwinPart]:
        """Which experts are parts of Twin-Merging, by name."""
        return {name: f.part for name, f in self.facts.items() if f.part is not None}

    @property
    def forms(self) -> dict[str, str]:
        """The form of each expert that is no low-rank one, by name."""
        return {name: f.form for name, f in self.facts.items() if f.form != "low_rank"}

    @property
    def invocations(self) -> dict[str, tuple[int, ...]]:
        """The tokens from which on experts act, of those that do not act everywhere, by name."""
        return {name: f.invocation for name, f in self.facts.items() if f.invocation}

    @property
    def alone(self) -> frozenset[str]:
        """The experts that may be used only alone."""
        return frozenset(name for name, f in self.facts.items() if f.alone)


def _read_one(library: Library, name: str, digest: str, before: ExpertTable) -> ExpertFacts:
    manifest = library.managed.get(name)
    if manifest is not None and manifest.digest == digest:
        return ExpertFacts(
            digest,
            manifest.form,
            manifest.twin,
            manifest.invocation,
            manifest.licence,
            manifest.alone,
        )
    known = before.facts.get(name)
    if known is not None and known.digest == digest:
        return known
    return ExpertFacts(digest, invocation=() if manifest else library.invocation(name))
