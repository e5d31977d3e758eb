"""The library, a folder whose subfolders are experts, as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapters.errors import AdapterError, ExpertError, LibraryError
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE, DeltaReport, is_hidden, is_peft_folder
from adapters.files.paths import check_expert_folder, check_folder, name_unreadable
from adapters.library.manifest import Manifest, Source, TwinPart
from adapters.library.names import check_inside, check_name, is_stray, list_places, split_reference
from adapters.library.twins import explain_orphans, find_parts, list_classes
from adapters.library.versions import VersionStore

# What reads tensors is imported where that is done: to list a library takes no torch.
if TYPE_CHECKING:
    from adapters.deltas import Deltas, ExpertDeltas
    from adapters.expert import Expert
    from adapters.files.checkpoint import Checkpoint

EXAMPLES_FILE = "examples.txt"
_ADAPTER_STEM = "adapter_model"

R = TypeVar("R")


@dataclass(frozen=True)
class Library:
    """The experts under `root`, in the order of their names.

    `root/<name>/` is either a PEFT LoRA folder, where an optional `examples.txt` holds example
    prompts, one a line; or it holds versions, as `adapters.library.versions` writes them.
    """

    root: Path
    names: tuple[str, ...]
    """The names of the experts, of whatever form."""
    managed: Mapping[str, Manifest] = field(default_factory=dict)
    """The current version of each expert that has versions, by name."""

    problems: Mapping[str, str] = field(default_factory=dict)
    """Why folders that should be experts cannot be used, by name."""

    @classmethod
    def open(cls, root: Path | str) -> Library:
        """Find the experts of a folder, without reading their weights.

        One that cannot be used is among the problems, and never keeps the others from being used.

        Raises LibraryError if there is no such folder, or nothing in it that can be used.
        """
        root = Path(root).expanduser()
        check_folder(root, "the library")
        library = cls.scan(root)
        if not library.names:
            reasons = "".join(f"; {reason}" for reason in library.problems.values())
            raise LibraryError(
                f"library {root} holds no PEFT adapter folder (one with an adapter_config.json) and"
                f" nothing that was added{reasons}"
            )
        return library

    @classmethod
    def scan(cls, root: Path) -> Library:
        """Do the same for a folder in which there may be nothing that can be used."""
        plain: list[str] = []
        managed: dict[str, Manifest] = {}
        problems: dict[str, str] = {}
        for name in list_places(root):
            try:
                found = _look_at(root, name)
            except AdapterError as error:
                problems[name] = str(error)
            else:
                if isinstance(found, Manifest):
                    managed[name] = found
                elif found:
                    plain.append(name)
        for name, reason in explain_orphans(find_parts(managed)).items():
            problems[name] = reason
            del managed[name]
        return cls(root, tuple(sorted([*plain, *managed])), managed, problems)

    def form(self, name: str) -> str:
        """Return the form of an expert: low_rank, one_bit or dense."""
        return self.managed[name].form if name in self.managed else "low_rank"

    @property
    def low_rank_names(self) -> tuple[str, ...]:
        """The names of the experts that are low-rank factors."""
        return tuple(name for name in self.names if self.form(name) == "low_rank")

    def expert(self, name: str) -> Expert:
        """Read and check a low-rank expert, the current version or `NAME@N`.

        Raises ExpertError if it is not there, is of another form or cannot be represented exactly,
        LibraryError if it is among the problems.
        """
        from adapters.files.peft import load_peft

        manifest = self._version(name)
        if manifest and manifest.form != "low_rank":
            raise ExpertError(
                f"expert {name!r} has the form {manifest.form}, and low-rank factors are wanted; "
                f"make some of it: tta experts compress {name} --rank R --as NEW"
            )
        if manifest:
            return VersionStore(self.root).expert(manifest)
        if name not in self.names:
            raise ExpertError(
                f"the library {self.root} holds no expert {name!r}; it holds:"
                f" {', '.join(self.names)}"
            )
        return load_peft(self.root / name, name)

    def deltas(self, name: str) -> ExpertDeltas:
        """Return what an expert of any form changes, the current version or `NAME@N`.

        Raises ExpertError as `expert` does, but for the form.
        """
        from adapters.deltas import LowRankDeltas

        manifest = self._version(name)
        if manifest:
            return VersionStore(self.root).deltas(manifest)
        return LowRankDeltas(self.expert(name))

    def manifest(self, name: str) -> Manifest:
        """Return what is known of an expert of any form, the current version or `NAME@N`.

        A PEFT folder has no versions: it is read, and counts as version 0.

        Raises ExpertError as `deltas` does.
        """
        return self._version(name) or self._plain(name)

    def verify(self, name: str) -> None:
        """Read all weights that the library has of an expert, in all versions or in that of NAME@N.

        Raises ExpertError or LibraryError if they are not what was added.
        """
        manifest = self._version(name)
        if manifest is None:
            self.expert(name)
        elif "@" in name:
            VersionStore(self.root).verify_version(manifest)
        else:
            VersionStore(self.root).verify(name)

    def read_experts(self) -> tuple[dict[str, ExpertDeltas], dict[str, str]]:
        """Read and check all experts, and their prompts.

        Returns what each that can be used changes, and why others cannot be, both by name.
        """

        def read(name: str) -> ExpertDeltas:
            self.examples(name)
            return self.deltas(name)

        found, problems = self._read_all(self.names, read)
        parts = {name: part for name, part in self.parts.items() if name in found}
        for name, reason in explain_orphans(parts).items():
            problems[name] = reason
            del found[name]
        return found, problems

    def usable(self) -> Library:
        """Return the library without the experts that cannot be read, which are problems in it.

        Raises LibraryError if none of the others is left, and there are problems.
        """
        experts, problems = self.read_experts()
        if problems and not experts:
            raise LibraryError("no expert can be used: " + "; ".join(problems.values()))
        managed = {name: m for name, m in self.managed.items() if name not in problems}
        return replace(self, names=tuple(experts), managed=managed, problems=problems)

    def read_manifests(self) -> tuple[dict[str, Manifest], dict[str, str]]:
        """Return what is known of all experts, as `read_experts` does."""
        return self._read_all(self.names, self.manifest)

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """All low-rank experts, by name.

        Raises ExpertError for the first that cannot be represented exactly.
        """
        return {name: self.expert(name) for name in self.low_rank_names}

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests of all experts by name.

        Raises ExpertError as `manifest` does.
        """
        return {name: self.manifest(name) for name in self.names}

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of each expert, by name.

        Raises ExpertError as `digest` does.
        """
        return {name: self.digest(name) for name in self.names}

    def digest(self, name: str) -> str:
        """Return the digest of an expert; raise ExpertError if a PEFT folder cannot be read."""
        manifest = self.managed.get(name)
        return manifest.digest if manifest else self.expert(name).digest

    @property
    def parts(self) -> dict[str, TwinPart]:
        """Which experts are parts of Twin-Merging, by name."""
        return find_parts(self.managed)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the experts that policies choose among.

        A shared part of Twin-Merging is none of them, nor is an exclusive one whose expert is there
        itself, nor one that may be used only alone.
        """
        found = list_classes(self.names, self.parts, self.digests) if self.parts else self.names
        return tuple(name for name in found if name not in self.alone)

    @property
    def alone(self) -> frozenset[str]:
        """The names of the experts that may be used only alone."""
        return frozenset(name for name, manifest in self.managed.items() if manifest.alone)

    def invocation(self, name: str) -> tuple[int, ...]:
        """Return the tokens from whose last place in a prompt on an expert acts.

        There are none if it acts wherever its mix does. Raises ExpertError if the configuration of
        a PEFT folder cannot be read.
        """
        from adapters.files.peft_config import read_settings

        manifest = self._version(name)
        return manifest.invocation if manifest else read_settings(self.root / name, name).invocation

    @property
    def base_digest(self) -> str | None:
        """The digest of the base that the experts change.

        None where there are only PEFT folders, which do not say.
        """
        base = VersionStore(self.root).base
        return base.digest if base else None

    def examples(self, name: str) -> list[str]:
        """Return the example prompts of an expert, possibly none.

        Raises LibraryError if they cannot be read.
        """
        if manifest := self._version(name):
            return list(manifest.examples)
        file = self.root / name / EXAMPLES_FILE
        with name_unreadable(file):
            return read_examples(file) if file.is_file() else []

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts.values())

    def _read_all(
        self, names: Iterable[str], read: Callable[[str], R]
    ) -> tuple[dict[str, R], dict[str, str]]:
        found: dict[str, R] = {}
        problems = dict(self.problems)
        for name in names:
            try:
                found[name] = read(name)
            except AdapterError as error:
                problems[name] = str(error)
        return found, problems

    def _version(self, name: str) -> Manifest | None:
        """Return the version that NAME or NAME@N stands for; None if it is none of the versions."""
        known, number = split_reference(name)
        if number is not None:
            return VersionStore(self.root).version(known, number)
        if name in self.problems:
            raise LibraryError(f"expert {name!r} cannot be used: {self.problems[name]}")
        return self.managed.get(name)

    def _plain(self, name: str) -> Manifest:
        """Return the manifest that a PEFT folder would have."""
        folder, expert = self.root / name, self.expert(name)
        ranks = {module: factor.rank for module, factor in expert.factors.items()}
        size = sum(
            file.stat().st_size for file in folder.glob("*.safetensors") if not is_hidden(file)
        )
        return Manifest(
            source=Source("peft", str(folder.resolve())),
            invocation=self.invocation(name),
            examples=tuple(self.examples(name)),
            name=name,
            version=0,
            digest=expert.digest,
            base=None,
            report=DeltaReport("low_rank", {}, {}, ranks, size, size),
            created=datetime.fromtimestamp((folder / CONFIG_FILE).stat().st_mtime, UTC).isoformat(
                timespec="seconds"
            ),
        )


def open_expert_folder(
    path: Path, base: Checkpoint, *, partial: bool = False
) -> tuple[Source, Deltas]:
    """Read a folder from outside: a PEFT LoRA, or the base after a full fine-tune.

    Args:
        path: The folder.
        base: What it changes.
        partial: Whether a fine-tune may have weights that the base has not, which are left out.

    Returns where the expert comes from and what it changes.

    Raises LibraryError for a folder that is neither, ExpertError for one that cannot be represented
    exactly.
    """
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.finetune import TaskVector
    from adapters.files.model_config import check_same_computation
    from adapters.files.peft import open_adapter
    from adapters.library.origin import note_differences

    check_expert_folder(path)
    with name_unreadable(path):
        where, notes = str(path.resolve()), tuple(note_differences(path, base.folder))
        if is_peft_folder(path):
            return Source("peft", where, notes=notes), open_adapter(path, base)
        tuned = Checkpoint.open(path)
        check_same_computation(tuned.folder, base.folder)
        vector = TaskVector(base, tuned, partial)
        left_out = tuple(vector.notes) if partial else ()
        return Source("finetune", where, notes=notes + left_out), vector


def read_examples(file: Path) -> list[str]:
    """Return the prompts in a file, one a line, without blank lines.

    Raises LibraryError if it cannot be read as UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryError(f"{file} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _look_at(root: Path, name: str) -> Manifest | bool:
    """Return the version of a folder, True for a PEFT folder, False for what is no expert.

    Raises LibraryError for what should be an expert and cannot be used.
    """
    place = root / name
    with name_unreadable(place):
        if place.is_symlink() and not place.exists():
            raise LibraryError(f"{place} is a link to {place.readlink()}, which is not there")
        if not place.is_dir():
            return False
        names = {file.name for file in place.iterdir()}
        if is_peft_folder(place):
            _check_plain(root, name)
            return True
        store = VersionStore(root)
        if store.has_versions(name):
            return store.current(name) or False
        if any(file.startswith(_ADAPTER_STEM) for file in names):
            raise LibraryError(
                f"{place} has weights of an adapter and no {CONFIG_FILE}: copy the whole folder"
            )
    return False


def _check_plain(root: Path, name: str) -> None:
    """Raise LibraryError for a PEFT folder that cannot be an expert of a library.

    That is one of an unusable name, with files that lead out, without weights, or with versions
    beside them.
    """
    store = VersionStore(root)
    place = check_name(root, name)
    if store.has_versions(name):
        store.current(name)
    names = []
    for file in place.iterdir():
        if not is_stray(file.name):
            check_inside(root, file)
            names.append(file.name)
    if not any(file.startswith(_ADAPTER_STEM) for file in names):
        raise LibraryError(f"{place} has no {WEIGHTS_FILE}: copy the whole folder")
