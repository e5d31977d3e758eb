"""The experts of a library on disk, in versions that are only ever added.

    library.json                            the base that they change
    <expert>/v0001/expert.json              the manifest
    <expert>/v0001/weights-*.safetensors    the weights
    <expert>/v0002/removed                  a version that says that the expert is gone
    .staging-*/                             what is being written; the process that writes it holds
                                            the file `lock` in it
    .lock                                   held while versions get their numbers and places

The highest version is the expert. Versions are written to a staging folder, forced to the disk, and
put in their places as `adapters.library.staging` does: whenever a process is killed, the versions
are those from before or those that were made together, each of them whole.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import AdapterError, ExpertError, LibraryError
from adapters.files.atomic import move_into_place, sync
from adapters.files.facts import DeltaReport, is_peft_folder
from adapters.files.paths import check_folder, name_unreadable
from adapters.library import integrity
from adapters.library.manifest import (
    About,
    Base,
    LibraryRecord,
    Manifest,
    TwinPart,
    read_json,
    to_json,
)
from adapters.library.names import (
    BASE_FILE,
    MANIFEST_FILE,
    REMOVED_FILE,
    check_name,
    is_stray,
    is_version_file,
    list_places,
    read_number,
)
from adapters.library.staging import StagingArea, is_pending
from adapters.library.twins import check_remaining

# What reads and writes tensors is imported where that is done: to list a library takes no torch.
if TYPE_CHECKING:
    from adapters.deltas import Deltas
    from adapters.expert import Expert
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.delta_forms import Form
    from adapters.files.servable import ServableWeights


def check_fit(deltas: Deltas, base: Checkpoint, *, packed: bool = False) -> None:
    """Raise ExpertError, naming the weight, if the base does not have one in the deltas' shape.

    Args:
        deltas: The deltas.
        base: The base.
        packed: Whether a weight that a quantised base packs counts as what it is computed with.
    """
    shapes = base.real_shapes if packed else base.shapes
    for weight, shape in deltas.shapes.items():
        if shapes.get(weight) != tuple(shape):
            has = f"has it as {shapes[weight]}" if weight in shapes else "has no such weight"
            raise ExpertError(
                f"{weight} is to change as {tuple(shape)}; the base {base.folder} {has}"
            )


@dataclass(frozen=True)
class NewVersion:
    """What becomes the next version of an expert."""

    name: str
    """The expert's, which may be new."""
    deltas: Deltas
    """What the version changes."""
    form: Form
    """How the weights are kept."""
    about: About
    """What the owner says of it."""
    base: Checkpoint | None = None
    """What the deltas change; the first one becomes the library's. None for what is made of the
    library's own experts."""
    score: Callable[[Deltas], Mapping[str, float]] = lambda written: {}
    """Measures what was written, for the manifest's scores."""


@dataclass(frozen=True)
class _Staged:
    """A version whose weights are written, without a number yet."""

    folder: Path
    about: About
    digest: str
    report: DeltaReport


@dataclass(frozen=True)
class VersionStore:
    """The versions of all experts of a library, which several processes may change at once."""

    root: Path
    """The library's folder, which need not exist yet."""

    @property
    def base(self) -> Base | None:
        """The base that the experts change; None before it is known.

        Raises LibraryError if it cannot be read.
        """
        file = self.root / BASE_FILE
        with name_unreadable(file):
            return read_json(LibraryRecord, file).base if file.exists() else None

    def checkpoint(self, folder: Path | None = None) -> Checkpoint:
        """Open the base's weights, and read all of them to compare their digest.

        Args:
            folder: Where they are; by default, where they were when the library began.

        Raises LibraryError if they are not those that the experts change, or if no folder is known.
        """
        from adapters.files.checkpoint import Checkpoint

        place = (folder or self._recall_base()).expanduser()
        check_folder(place, "the base")
        if is_peft_folder(place) and not (place / "config.json").exists():
            raise LibraryError(
                f"the base {place} is a PEFT adapter: give the model that it changes"
            )
        with name_unreadable(place):
            checkpoint = Checkpoint.open(place)
            self.check_base(checkpoint)
        return checkpoint

    def _recall_base(self) -> Path:
        """Return where the base was; raise LibraryError if it is not there, or none is known."""
        known = self.base
        if known is None:
            raise LibraryError(f"library {self.root} has no base yet: name its folder with --base")
        if not Path(known.source).is_dir():
            raise LibraryError(
                f"the library's base was at {known.source} and is not there: name it with --base,"
                " or have its new place remembered by: tta experts base FOLDER"
            )
        return Path(known.source)

    def move_base(self, folder: Path) -> Base:
        """Remember another place of the base, once its weights were compared.

        Raises LibraryError if they are not those that the experts change, or if no base is known.
        """
        if self.base is None:
            raise LibraryError(
                f"library {self.root} has no base yet: it is remembered when an expert is added"
            )
        checkpoint = self.checkpoint(folder)
        with self._staging.stage() as home, self._staging.locked():
            return self._record_base(checkpoint, home)

    @property
    def names(self) -> list[str]:
        """The names of all folders with versions, removed experts and unusable names too."""
        return [name for name in list_places(self.root) if self.has_versions(name)]

    def has_versions(self, name: str) -> bool:
        """Return whether a folder holds versions, if only of an expert that is gone."""
        return bool(self._numbers(name))

    def current(self, name: str) -> Manifest | None:
        """Return the highest version of an expert; None if it says that the expert is gone.

        Raises LibraryError if there is none, or if its folder holds anything that this module did
        not write.
        """
        return self.find(name, self._existing(name)[-1])

    def version(self, name: str, number: int) -> Manifest:
        """Return one version of an expert, also of one that is gone.

        Raises LibraryError as `current` does, and if there is no such version or its files are
        deleted.
        """
        numbers = self._existing(name)
        if number not in numbers:
            there = ", ".join(map(str, numbers))
            raise LibraryError(f"{name!r} has no version {number}; it has: {there}")
        manifest = self.find(name, number)
        if manifest is None:
            raise LibraryError(
                f"version {number} of {name!r} only says that the expert was removed"
            )
        return manifest

    def versions(self, name: str) -> list[Manifest]:
        """Return every version of an expert whose files are there, the oldest first.

        Raises LibraryError as `current` does.
        """
        return [m for number in self._existing(name) if (m := self.find(name, number))]

    def find(self, name: str, number: int) -> Manifest | None:
        """Return a version that is there; None if it says that the expert is gone.

        Raises LibraryError as `current` does.
        """
        folder = self._folder(name, number)
        if folder.is_symlink():
            raise LibraryError(f"{folder} is a link; copy the folder instead of linking it")
        if not folder.is_dir():
            raise LibraryError(f"{folder} was deleted while it was looked for; try again")
        with name_unreadable(folder):
            for file in folder.iterdir():
                if is_stray(file.name) and (file.is_file() or file.name.startswith(".")):
                    continue
                try:
                    mode = file.lstat().st_mode
                except FileNotFoundError:
                    continue  # its writer has just said that the version is there
                if not stat.S_ISREG(mode) or not is_version_file(file.name):
                    raise LibraryError(f"{file} is no plain file of an expert; remove it")
            if (folder / REMOVED_FILE).exists():
                return None
        manifest = read_json(Manifest, folder / MANIFEST_FILE)
        if (manifest.name, manifest.version) != (name, number):
            raise LibraryError(
                f"{folder} holds version {manifest.version} of {manifest.name!r}: move it back"
            )
        return manifest

    def deltas(self, manifest: Manifest) -> integrity.SealedDeltas:
        """Return what a version changes.

        Its weights are read once for that, and compared with what was added.

        Raises ExpertError or LibraryError if they cannot be read or are others.
        """
        folder = self._folder(manifest.name, manifest.version)
        with name_unreadable(folder):
            return integrity.open_sealed(folder, manifest)

    def expert(self, manifest: Manifest) -> Expert:
        """Return a low-rank version as an expert.

        Raises ExpertError if it is not what was added.
        """
        from adapters.files import delta_forms

        folder = self._folder(manifest.name, manifest.version)
        with name_unreadable(folder):
            expert = delta_forms.read(folder, "low_rank").expert(manifest.name)
        if expert.digest != manifest.digest:
            raise ExpertError(
                f"expert {manifest.name!r} is not what was added: the files in {folder} were"
                " changed; add it again, or take an older version back with tta experts restore"
            )
        return expert

    def add(  # noqa: PLR0913 - all that a version is made of
        self,
        name: str,
        deltas: Deltas,
        form: Form,
        about: About,
        base: Checkpoint | None = None,
        score: Callable[[Deltas], Mapping[str, float]] = lambda written: {},
    ) -> Manifest:
        """Write one version, as `add_all` does; the arguments are those of `NewVersion`."""
        return self.add_all([NewVersion(name, deltas, form, about, base, score)])[0]

    def add_all(self, new: Sequence[NewVersion]) -> list[Manifest]:
        """Write the next versions of experts, all or none, on the disk when this returns.

        Returns the versions' manifests. Raises ExpertError if deltas do not fit the base or the
        form, LibraryError for a name or base that cannot be used, and if an exclusive part of
        Twin-Merging would be left without its shared one.
        """
        for one in new:
            self._managed(one.name)
            if one.base is not None:
                self.check_base(one.base)
                check_fit(one.deltas, one.base, packed=True)
        with self._staging.stage() as home:
            # The weights, without the lock: this is what takes time.
            staged = [
                _stage(one, home / "new" / one.name / str(k), self._servable(one.base))
                for k, one in enumerate(new)
            ]

            # The numbers and the places, one process at a time.
            with self._staging.locked():
                for one in new:
                    if one.base is not None:
                        self._bind(one.base, home)
                names = [one.name for one in new]
                return self._place(home, dict(zip(names, staged, strict=True)))

    def restore(self, name: str, number: int | None = None) -> Manifest:
        """Make an older version of an expert its newest one, also of one that is gone.

        Args:
            name: The expert's.
            number: The version's; by default, the newest whose files are there below the current
                one.

        Returns the new version's manifest. Raises ExpertError if its weights are not what was
        added, LibraryError if there is no such version, or if it is the current one.
        """
        old = self._find_older(name, number)
        folder = self._folder(name, old.version)
        with self._staging.stage() as home:
            integrity.check_weights(folder, old)
            copy = home / "new" / name / "0"
            copy.mkdir(parents=True)
            for file in integrity.find_weights(folder):
                shutil.copyfile(file, copy / file.name)
                sync(copy / file.name)
            integrity.check_weights(copy, old)
            about = About(**{field.name: getattr(old, field.name) for field in fields(About)})
            with self._staging.locked():
                staged = _Staged(copy, about, old.digest, old.report)
                return self._place(home, {name: staged})[0]

    def remove(self, name: str, *, purge: bool = False) -> None:
        """Add a version that says that an expert is gone.

        Args:
            name: The expert's.
            purge: Whether to delete the files of the versions before it too.

        Raises LibraryError if there is no such expert, if it is gone already and nothing is to be
        purged, or if it is the shared part of Twin-Merging and exclusive ones are there.
        """
        self._existing(name)
        with self._staging.stage() as home, self._staging.locked():
            numbers = self._existing(name)
            if not (self._folder(name, numbers[-1]) / REMOVED_FILE).is_file():
                self._check_parts({name: None})
                numbers.append(self._next_number(name))
                gone = home / "removed"
                gone.mkdir()
                (gone / REMOVED_FILE).touch()
                place = self._folder(name, numbers[-1])
                move_into_place(gone, place)
            elif not purge:
                raise LibraryError(f"expert {name!r} is removed already")

            # What lies in the staging folder is deleted with it.
            for number in numbers[:-1] if purge else ():
                self._folder(name, number).rename(home / str(number))

    def verify(self, name: str) -> list[Manifest]:
        """Read all weights of all versions of an expert, and return the versions.

        Raises ExpertError or LibraryError for the first that is not, byte for byte, what was added.
        """
        versions = self.versions(name)
        for manifest in versions:
            self.verify_version(manifest)
        return versions

    def verify_version(self, manifest: Manifest) -> None:
        """Read all weights of one version; raise ExpertError if they are not what was added."""
        folder = self._folder(manifest.name, manifest.version)
        with name_unreadable(folder):
            integrity.check_weights(folder, manifest)
            integrity.check_finite(folder, manifest.form)

    def check_base(self, base: Checkpoint) -> None:
        """Raise LibraryError if the library's experts are known to change another base."""
        known = self.base
        if known and base.digest != known.digest:
            raise LibraryError(
                f"library {self.root} is of the base {known.source}, digest {known.digest};"
                f" {base.folder} has the digest {base.digest}. Experts of another base need a"
                " library of their own"
            )

    def _check_parts(self, new: Mapping[str, TwinPart | None]) -> None:
        """Check that a change leaves no exclusive part of Twin-Merging without its shared one.

        Args:
            new: What experts are to be, by name; None for what is no part.

        Raises LibraryError if it does.
        """
        before = {}
        for name in self.names:
            try:
                known = self.current(name)
            except AdapterError:
                continue  # what cannot be read is no part of anything
            if known and known.twin:
                before[name] = known.twin
        after = {name: part for name, part in {**before, **new}.items() if part}
        check_remaining(before, after)

    def _servable(self, base: Checkpoint | None) -> ServableWeights:
        """Return which weights slots serve of a base, or of the one that is known."""
        from adapters.files.servable import ServableWeights

        if base is not None:
            return ServableWeights.of(base)
        known = self.base
        return ServableWeights(known.layers, known.tied) if known else ServableWeights()

    @cached_property
    def _staging(self) -> StagingArea:
        return StagingArea(self.root)

    def _managed(self, name: str) -> Path:
        """Return the place of an expert's versions, which is no PEFT folder."""
        place = check_name(self.root, name)
        with name_unreadable(place):
            if is_peft_folder(place):
                raise LibraryError(
                    f"{place} is a PEFT folder and has no versions: take another name, or move or"
                    " delete the folder"
                )
        return place

    def _existing(self, name: str) -> list[int]:
        self._managed(name)
        numbers = self._numbers(name)
        if not numbers:
            raise LibraryError(
                f"library {self.root} holds no versions of {name!r}; it does of:"
                f" {', '.join(self.names) or 'none'}"
            )
        return numbers

    def _find_older(self, name: str, number: int | None) -> Manifest:
        """Return the version that `restore` means."""
        numbers = self._existing(name)
        if number is not None:
            if number == numbers[-1]:
                raise LibraryError(f"version {number} of {name!r} is the current one already")
            return self.version(name, number)
        for older in reversed(numbers[:-1]):
            if manifest := self.find(name, older):
                return manifest
        raise LibraryError(f"{name!r} has no version before {numbers[-1]} whose files are there")

    def _folder(self, name: str, number: int) -> Path:
        return self.root / name / f"v{number:04d}"

    def _numbers(self, name: str, *, pending: bool = False) -> list[int]:
        """Return the numbers of an expert's versions; those not yet there only if asked for."""
        place = self.root / name
        with name_unreadable(place):
            if not place.is_dir():
                return []
            return sorted(
                number
                for path in place.iterdir()
                if (number := read_number(path)) and (pending or not is_pending(path))
            )

    def _next_number(self, name: str) -> int:
        return max(self._numbers(name, pending=True), default=0) + 1

    def _bind(self, base: Checkpoint, home: Path) -> None:
        """Make it the library's base, unless it has one. Called with the lock held."""
        self.check_base(base)
        if self.base is None:
            self._record_base(base, home)

    def _record_base(self, base: Checkpoint, home: Path) -> Base:
        from adapters.files.servable import ServableWeights

        facts = ServableWeights.of(base)
        place = str(base.folder.resolve())
        record = LibraryRecord(Base(base.digest, place, facts.layers, facts.tied))
        (home / BASE_FILE).write_text(to_json(record), encoding="utf-8")
        move_into_place(home / BASE_FILE, self.root / BASE_FILE)
        return record.base

    def _place(self, home: Path, staged: Mapping[str, _Staged]) -> list[Manifest]:
        """Give staged versions, by name, their numbers and places. Called with the lock held."""
        self._check_parts({name: one.about.twin for name, one in staged.items()})
        base = self.base
        manifests = [
            Manifest(
                **vars(one.about),
                name=name,
                version=self._next_number(name),
                digest=one.digest,
                base=base.digest if base else None,
                report=one.report,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            for name, one in staged.items()
        ]
        for one, manifest in zip(staged.values(), manifests, strict=True):
            file = one.folder / MANIFEST_FILE
            file.write_text(to_json(manifest), encoding="utf-8")
            sync(file)
        self._staging.place(
            home,
            {staged[m.name].folder: self._folder(m.name, m.version) for m in manifests},
        )
        return manifests


def _stage(new: NewVersion, folder: Path, servable: ServableWeights) -> _Staged:
    """Write a version's weights to a folder that is not there, and force them to the disk."""
    from adapters.files import delta_forms

    try:
        report = delta_forms.write(new.deltas, folder, new.form, servable)
    except ExpertError as error:
        raise ExpertError(f"expert {new.name!r}: {error}") from None
    digest = integrity.digest_weights(folder, new.form.name)
    integrity.check_finite(folder, new.form.name)
    written = delta_forms.read(folder, new.form.name)
    about = replace(new.about, scores={**new.about.scores, **new.score(written)})
    for file in folder.iterdir():
        sync(file)
    return _Staged(folder, about, digest, report)
