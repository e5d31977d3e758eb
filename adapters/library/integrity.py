"""Weights of a library that are, byte for byte, those that were added, or are refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adapters.errors import ExpertError

# What reads tensors is imported where that is done: to list a library takes no torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from adapters.deltas import Deltas
    from adapters.expert import LowRank
    from adapters.files.delta_forms import PackedSigns
    from adapters.library.manifest import Manifest


class FileStamp(NamedTuple):
    """What changes of a file whenever anything of it does, or another takes its place."""

    device: int
    inode: int
    size: int
    modified: int
    """In nanoseconds, as is the next, which no program can set."""
    changed: int


@dataclass(frozen=True)
class SealedDeltas:
    """The deltas of a version whose weights were checked, and are those that were checked.

    After each reading the files' stamps are compared, so that a change between the check and the
    reading is found as well.
    """

    folder: Path
    digest: str
    """The expert's, as the manifest has it."""
    deltas: Deltas
    stamps: tuple[FileStamp, ...]
    """Those of the files when they were checked."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight that is touched."""
        return dict(self.deltas.shapes)

    def delta(self, weight: str) -> Tensor:
        """Return the change of one weight; raise ExpertError if the files have changed."""
        found = self.deltas.delta(weight)
        self._check()
        return found

    def factors(self, weight: str) -> LowRank | None:
        """Return the same change as factors; raise ExpertError if the files have changed."""
        found = self.deltas.factors(weight)
        self._check()
        return found

    def dtype_of(self, weight: str) -> torch.dtype:
        """Return the dtype that holds the change of a weight as it is in the files."""
        import torch

        from adapters.files.delta_forms import StoredDeltas

        stored = self.deltas
        return stored.dtype_of(weight) if isinstance(stored, StoredDeltas) else torch.float32

    def signs(self, weight: str) -> PackedSigns:
        """Return the signs of a matrix, of a one-bit version; as `delta` otherwise."""
        from adapters.files.delta_forms import StoredDeltas

        assert isinstance(self.deltas, StoredDeltas)
        found = self.deltas.signs(weight)
        self._check()
        return found

    def _check(self) -> None:
        if read_stamps(self.folder) != self.stamps:
            raise ExpertError(
                f"{self.folder} changed while it was read: its weights are not those that were"
                " checked; try again"
            )


def open_sealed(folder: Path, manifest: Manifest) -> SealedDeltas:
    """Check a version's weights, and return what they change.

    They are read once for that in a process, as long as the files have the same stamps.

    Raises ExpertError that names the folder if they are not what was added.
    """
    from adapters.files import delta_forms

    stamps = read_stamps(folder)
    _check_once(folder, manifest.form, manifest.digest, manifest.report.bytes_after, stamps)
    deltas = delta_forms.read(folder, manifest.form)
    sealed = SealedDeltas(folder, manifest.digest, deltas, stamps)
    sealed._check()
    return sealed


def check_weights(folder: Path, manifest: Manifest) -> None:
    """Read all of a version's weights; raise ExpertError if they are not what was added."""
    _check_content(
        folder, manifest.form, manifest.digest, manifest.report.bytes_after, read_stamps(folder)
    )


def find_weights(folder: Path) -> list[Path]:
    """Return the files of a version's weights."""
    return sorted(folder.glob("weights-*.safetensors"))


def read_stamps(folder: Path) -> tuple[FileStamp, ...]:
    """Return the stamps of a version's weights."""
    found = (file.stat() for file in find_weights(folder))
    return tuple(
        FileStamp(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found
    )


def digest_weights(folder: Path, form: str) -> str:
    """Return the digest of a version's weights.

    Raises ExpertError if they cannot be read, or hold NaN or infinite values as factors.
    """
    from adapters.files import delta_forms
    from adapters.files.digests import digest_tensors
    from adapters.files.safetensors_reader import TensorFile, index_tensors

    if form == "low_rank":
        return delta_forms.read(folder, "low_rank").expert(folder.parent.name).digest
    return digest_tensors(index_tensors(map(TensorFile.open, find_weights(folder))))


def check_finite(folder: Path, form: str) -> None:
    """Raise ExpertError for the first weight whose change is NaN or infinite.

    Factors need no such look: their digest is that of an expert, which is finite.
    """
    from adapters.files import delta_forms

    if form == "low_rank":
        return
    deltas = delta_forms.read(folder, form)
    for weight in deltas.shapes:
        if not deltas.delta(weight).isfinite().all():
            raise ExpertError(f"{folder}: the change of {weight} holds NaN or infinite values")


def _check_content(
    folder: Path, form: str, digest: str, size: int, stamps: tuple[FileStamp, ...]
) -> None:
    """Raise ExpertError unless the files have this digest and size, and these stamps to the end."""
    advice = "add the expert again, or take an older version back with tta experts restore"
    try:
        found = digest_weights(folder, form)
    except (ExpertError, OSError) as error:
        raise ExpertError(f"{folder} is not what was added ({error}); {advice}") from None
    has_changed = found != digest or sum(stamp.size for stamp in stamps) != size
    if has_changed or read_stamps(folder) != stamps:
        raise ExpertError(f"{folder} is not what was added: its weights were changed; {advice}")


_check_once = lru_cache(maxsize=4096)(_check_content)
