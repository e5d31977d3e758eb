"""The experts of a library on disk, in versions that are only ever added.

    library.json                            the base that they change
    <expert>/v0001/expert.json              the manifest
    <expert>/v0001/weights-*.safetensors    the weights
    <expert>/v0002/removed                  a version that says that the expert is gone
    .staging-*/                             a version that is being written; the process that writes
                                            it holds the file `lock` in it
    .lock                                   held while a version gets its number and place

The highest version is the expert. A version is written to a staging folder, forced to the disk, and
put in its place by one rename: whenever a process is killed, the versions are those from before or
one more, each of them whole.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import ExpertError, LibraryError
from adapters.files.atomic import move_into_place, sync
from adapters.files.facts import NAME, is_peft_folder
from adapters.library.manifest import About, Base, LibraryRecord, Manifest, read_json, to_json

# What reads and writes tensors is imported where that is done: to list a library takes no torch.
if TYPE_CHECKING:
    from adapters.deltas import Deltas
    from adapters.expert import Expert
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.delta_forms import Form

BASE_FILE = "library.json"
MANIFEST_FILE = "expert.json"
REMOVED_FILE = "removed"
RESERVED_NAMES = frozenset({"base", "auto", "router", BASE_FILE})
_LOCK_FILE = ".lock"
_STAGING = ".staging-"
_VERSION = re.compile(r"v(\d{4}|[1-9]\d{4,8})")
_FILES = re.compile(rf"{re.escape(MANIFEST_FILE)}|{REMOVED_FILE}|weights-\d{{5}}\.safetensors")


def check_name(root: Path, name: str) -> Path:
    """Return the place of an expert in a library.

    Raises LibraryError for a name that clients could not use, or that leads out of the library.
    """
    if not NAME.fullmatch(name) or name in RESERVED_NAMES:
        reserved = ", ".join(sorted(RESERVED_NAMES))
        raise LibraryError(
            f"expert name {name!r}: letters, digits, dot, dash and underscore are allowed;"
            f" {reserved} are taken"
        )
    check_inside(root, root / name)
    return root / name


def check_inside(root: Path, path: Path) -> None:
    """Raise LibraryError if a path below a library leads out of it, links followed."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise LibraryError(
            f"{path} leads out of the library {root}; copy it there instead of linking it"
        )


def check_fit(deltas: Deltas, base: Checkpoint) -> None:
    """Raise ExpertError, naming the weight, if the base does not have one in the deltas' shape."""
    shapes = base.shapes
    for weight, shape in deltas.shapes.items():
        if shapes.get(weight) != tuple(shape):
            has = f"has it as {shapes[weight]}" if weight in shapes else "has no such weight"
            raise ExpertError(
                f"{weight} is to change as {tuple(shape)}; the base {base.folder} {has}"
            )


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
        return read_json(LibraryRecord, file).base if file.exists() else None

    def checkpoint(self, folder: Path | None = None) -> Checkpoint:
        """Open the base's weights, and read all of them to compare their digest.

        Args:
            folder: Where they are; by default, where they were when the library began.

        Raises LibraryError if they are not those that the experts change, or if no folder is known.
        """
        from adapters.files.checkpoint import Checkpoint

        known = self.base
        if folder is None and known is None:
            raise LibraryError(f"library {self.root} has no base yet: name its folder with --base")
        checkpoint = Checkpoint.open(folder or Path(known.source if known else ""))
        self.check_base(checkpoint)
        return checkpoint

    @property
    def names(self) -> list[str]:
        """The names of all experts with versions, removed ones too.

        Raises LibraryError for a name that clients could not use.
        """
        # A staging folder may be gone by the time that one looks into it.
        places = (p for p in self.root.glob("*") if not p.name.startswith(_STAGING))
        names = sorted(p.name for p in places if _numbers(p))
        for name in names:
            check_name(self.root, name)
        return names

    def current(self, name: str) -> Manifest | None:
        """Return the highest version of an expert; None if it says that the expert is gone.

        Raises LibraryError if there is none, or if its folder holds anything that this module did
        not write.
        """
        return self._manifest(name, self._existing(name)[-1])

    def versions(self, name: str) -> list[Manifest]:
        """Return every version of an expert whose files are there, the oldest first.

        Raises LibraryError as `current` does.
        """
        return [m for number in self._existing(name) if (m := self._manifest(name, number))]

    def deltas(self, manifest: Manifest) -> Deltas:
        """Return what a version changes.

        Raises ExpertError or LibraryError if it cannot be read.
        """
        from adapters.files import delta_forms

        return delta_forms.read(self._folder(manifest.name, manifest.version), manifest.form)

    def expert(self, manifest: Manifest) -> Expert:
        """Return a low-rank version as an expert.

        Raises ExpertError if it is not what was added.
        """
        from adapters.files import delta_forms

        folder = self._folder(manifest.name, manifest.version)
        expert = delta_forms.read(folder, "low_rank").expert(manifest.name)
        if expert.digest != manifest.digest:
            raise ExpertError(
                f"expert {manifest.name!r} is not what was added: its files were changed; add it"
                " again"
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
        """Write deltas as the next version of an expert, on the disk when this returns.

        Args:
            name: The expert's, which may be new.
            deltas: What the version changes.
            form: How the weights are kept.
            about: What the owner says of it.
            base: What the deltas change; the first one becomes the library's. None for what is made
                of the library's own experts.
            score: Measures what was written, for the manifest's scores.

        Returns the version's manifest. Raises ExpertError if the deltas do not fit the base or the
        form, LibraryError for a name or base that cannot be used.
        """
        from adapters.files import delta_forms

        place = self._managed(name)
        if base is not None:
            self.check_base(base)
            check_fit(deltas, base)
        with self._staging() as folder:
            # The weights, without the lock: this is what takes time.
            report = delta_forms.write(deltas, folder, form)
            digest = _digest(folder, form.name, name)
            scores = {**about.scores, **score(delta_forms.read(folder, form.name))}
            about = replace(about, scores=scores)
            for file in folder.iterdir():
                sync(file)

            # The number and the place, one process at a time.
            with self._locked():
                if base is not None:
                    self._bind(base, folder.parent)
                manifest = Manifest(
                    **vars(about),
                    name=name,
                    version=max(_numbers(place), default=0) + 1,
                    digest=digest,
                    base=self.base.digest if self.base else None,
                    report=report,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                )
                (folder / MANIFEST_FILE).write_text(to_json(manifest))
                sync(folder / MANIFEST_FILE)
                self._place(folder, name, manifest.version)
        return manifest

    def remove(self, name: str, *, purge: bool = False) -> None:
        """Add a version that says that an expert is gone.

        Args:
            name: The expert's.
            purge: Whether to delete the files of the versions before it too.

        Raises LibraryError if there is no such expert, or if it is gone already and nothing is to
        be purged.
        """
        self._existing(name)
        with self._staging() as folder, self._locked():
            numbers = self._existing(name)
            if self._manifest(name, numbers[-1]):
                numbers.append(numbers[-1] + 1)
                (folder / REMOVED_FILE).touch()
                self._place(folder, name, numbers[-1])
            elif not purge:
                raise LibraryError(f"expert {name!r} is removed already")

            # What lies beside the staged version is deleted with it.
            for number in numbers[:-1] if purge else ():
                self._folder(name, number).rename(folder.parent / str(number))

    def verify(self, name: str) -> list[Manifest]:
        """Read all weights of all versions of an expert, and return the versions.

        Raises ExpertError or LibraryError for the first that is not, byte for byte, what was added.
        """
        versions = self.versions(name)
        for manifest in versions:
            folder = self._folder(name, manifest.version)
            size = sum(file.stat().st_size for file in _weights(folder))
            if (
                size != manifest.report.bytes_after
                or _digest(folder, manifest.form, name) != manifest.digest
            ):
                raise ExpertError(
                    f"{folder} is not what was added: its weights were changed; add the expert"
                    " again"
                )
        return versions

    def _managed(self, name: str) -> Path:
        """Return the place of an expert's versions, which is no PEFT folder."""
        place = check_name(self.root, name)
        if is_peft_folder(place):
            raise LibraryError(
                f"{place} is a PEFT folder and has no versions: take another name, or move or"
                " delete the folder"
            )
        return place

    def _existing(self, name: str) -> list[int]:
        numbers = _numbers(self._managed(name))
        if not numbers:
            raise LibraryError(
                f"library {self.root} holds no versions of {name!r}; it does of:"
                f" {', '.join(self.names) or 'none'}"
            )
        return numbers

    def _folder(self, name: str, number: int) -> Path:
        return self.root / name / f"v{number:04d}"

    def _manifest(self, name: str, number: int) -> Manifest | None:
        folder = self._folder(name, number)
        if folder.is_symlink():
            raise LibraryError(f"{folder} is a link; copy the folder instead of linking it")
        if not folder.is_dir():
            raise LibraryError(f"{folder} was deleted while it was looked for; try again")
        for file in folder.iterdir():
            if file.is_symlink() or not file.is_file() or not _FILES.fullmatch(file.name):
                raise LibraryError(f"{file} is no plain file of an expert; remove it")
        if (folder / REMOVED_FILE).exists():
            return None
        manifest = read_json(Manifest, folder / MANIFEST_FILE)
        if (manifest.name, manifest.version) != (name, number):
            raise LibraryError(
                f"{folder} holds version {manifest.version} of {manifest.name!r}: move it back"
            )
        return manifest

    def check_base(self, base: Checkpoint) -> None:
        """Raise LibraryError if the library's experts are known to change another base."""
        known = self.base
        if known and base.digest != known.digest:
            raise LibraryError(
                f"library {self.root} is of the base {known.source}, digest {known.digest};"
                f" {base.folder} has the digest {base.digest}. Experts of another base need a"
                " library of their own"
            )

    def _bind(self, base: Checkpoint, staging: Path) -> None:
        """Make it the library's base, unless it has one. Called with the lock held."""
        self.check_base(base)
        if self.base is None:
            record = LibraryRecord(Base(base.digest, str(base.folder.resolve())))
            (staging / BASE_FILE).write_text(to_json(record))
            move_into_place(staging / BASE_FILE, self.root / BASE_FILE)

    def _place(self, folder: Path, name: str, number: int) -> None:
        """Put a staged version, all of it on the disk, in its place. Called with the lock held."""
        target = self._folder(name, number)
        target.parent.mkdir(exist_ok=True)
        move_into_place(folder, target)
        sync(self.root)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / _LOCK_FILE).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """Yield an empty folder to write a version to; what lies beside it is deleted at the end.

        Folders that killed processes left are deleted first. Raises LibraryError if the disk
        refuses.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)

            # A lock on a file of its own says that a staging folder's process lives.
            with self._locked():
                for left in self.root.glob(f"{_STAGING}*"):
                    _delete_if_dead(left)
                home = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.root))
                lock = (home / "lock").open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)

            try:
                (home / "version").mkdir()
                yield home / "version"
            finally:
                with self._locked(), lock:
                    shutil.rmtree(home)
        except OSError as error:
            raise LibraryError(f"library {self.root} could not be changed: {error}") from error


def _numbers(place: Path) -> list[int]:
    return sorted(
        int(match[1])
        for p in place.glob("v*")
        if (match := _VERSION.fullmatch(p.name)) and p.is_dir()
    )


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights-*.safetensors"))


def _digest(folder: Path, form: str, name: str) -> str:
    """Return the digest of a version's weights; raise ExpertError for NaN or infinite values."""
    from adapters.files import delta_forms
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.safetensors_reader import TensorFile, index_tensors

    if form == "low_rank":
        return delta_forms.read(folder, "low_rank").expert(name).digest
    deltas = delta_forms.read(folder, form)
    for weight in deltas.shapes:
        if not deltas.delta(weight).isfinite().all():
            raise ExpertError(f"{folder}: the change of {weight} holds NaN or infinite values")
    return Checkpoint(folder, index_tensors(map(TensorFile.open, _weights(folder)))).digest


def _delete_if_dead(staging: Path) -> None:
    with (staging / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(staging)
