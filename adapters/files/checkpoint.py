"""A transformers checkpoint, whose weights are read one at a time from one file or several."""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files.digests import digest_tensors
from adapters.files.quantised import unpack_shapes
from adapters.files.safetensors_reader import (
    PICKLES,
    TensorFile,
    check_size,
    confine,
    index_tensors,
)

_MAX_INDEX = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model as files hold them."""

    folder: Path
    files: Mapping[str, TensorFile]
    """The file of every weight, by the weight's name."""

    @classmethod
    def open(cls, folder: Path | str) -> "Checkpoint":
        """Find and check a checkpoint's files, without reading data.

        Raises ExpertError for pickles, for missing files, and for a name that is there twice.
        """
        folder = Path(folder).expanduser()
        return cls(folder, find_tensor_files(folder, "model"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight."""
        return {weight: file.tensors[weight].shape for weight, file in self.files.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype | str]:
        """The dtype of every weight."""
        return {weight: file.tensors[weight].dtype for weight, file in self.files.items()}

    @cached_property
    def real_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight as the model computes with it.

        Those that a quantised checkpoint packs have their shapes from its config.json. Raises
        ExpertError if that does not tell them.
        """
        return unpack_shapes(self.folder, self.shapes, self.dtypes)

    @property
    def shards(self) -> dict[str, int]:
        """The size of each file in bytes, by its name."""
        return {file.path.name: file.path.stat().st_size for file in self.files.values()}

    def read(self, weight: str) -> Tensor:
        """Return one weight in its own dtype, the caller's to overwrite.

        Raises KeyError if the checkpoint does not have it.
        """
        return self.files[weight].read(weight)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name, dtype, shape and SHA-256 of the bytes of all weights.

        It is the same however the weights are sharded.
        """
        return digest_tensors(self.files)


def are_same(one: Checkpoint, weight: str, other: Checkpoint, source: str) -> bool:
    """Whether two weights are the same bytes of the same dtype and shape."""
    a, b = one.files[weight], other.files[source]
    if a.tensors[weight][:2] != b.tensors[source][:2]:
        return False
    return torch.equal(a.read_bytes(weight), b.read_bytes(source))


def find_tensor_files(
    folder: Path, stem: str, *, max_bytes: int = 1 << 38
) -> dict[str, TensorFile]:
    """Return the file of every tensor in a folder, by the tensor's name.

    That is the shards that `<stem>.safetensors.index.json` names, else `<stem>.safetensors`, else
    `<stem>-00001-of-0000N.safetensors` and on; and never a choice between two sets of the same
    weights, of which vLLM would read the one and transformers the other.

    Args:
        folder: Where they are.
        stem: How the files' names begin.
        max_bytes: The most that one file may have.

    Raises ExpertError if there is none of these, for a shard that is missing, a name that is there
    twice, a second set of the same weights, and an index that its shards disagree with;
    LibraryError for a file that leads out of the folder.
    """
    single = f"{stem}.safetensors"
    index = f"{stem}.safetensors.index.json"
    places = None
    if (folder / index).is_file():
        places = _read_index(confine(folder, index))
        names = sorted(set(places.values()))
    elif (folder / single).is_file():
        names = [single]
    else:
        names = _numbered(folder, stem)

    files = index_tensors(
        TensorFile.open(confine(folder, name), max_bytes=max_bytes) for name in names
    )

    found = {name: file.path.name for name, file in files.items()}
    if places not in (None, found):
        wrong = sorted(name for name, _ in found.items() ^ places.items())
        raise ExpertError(
            f"{folder / index} and its shards disagree about {', '.join(wrong[:5])}; save the"
            " checkpoint again"
        )
    _check_alone(folder, set(names), files)
    return files


def _check_alone(folder: Path, names: Set[str], files: Mapping[str, TensorFile]) -> None:
    """Raise ExpertError if another file of the folder holds a second set of the same weights."""
    used = ", ".join(sorted(names)[:2])
    for path in sorted(folder.glob("*.safetensors")):
        if path.name in names:
            continue
        try:
            twice = TensorFile.open(path).tensors.keys() & files.keys()
        except ExpertError:
            twice = {"the weights"}
        if twice:
            raise ExpertError(
                f"{folder} has {min(twice)} in {path.name} as well as in {used}; vLLM and"
                " transformers would not read the same: keep one set of weights"
            )


def _numbered(folder: Path, stem: str) -> list[str]:
    """Return the names of shards that are numbered without a gap."""
    found = sorted(path.name for path in folder.glob(f"{stem}-*-of-*.safetensors"))
    if not found:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        hint = (
            f"; {pickles[0]} is a pickle, which can run code: save it as safetensors"
            if pickles
            else ""
        )
        raise ExpertError(f"{folder} has no {stem}.safetensors{hint}")
    wanted = [f"{stem}-{k:05}-of-{len(found):05}.safetensors" for k in range(1, len(found) + 1)]
    if found != wanted:
        raise ExpertError(
            f"{folder} has the shards {', '.join(found[:5])}, not {wanted[0]} to {wanted[-1]}"
        )
    return found


def _read_index(index: Path) -> dict[str, str]:
    """Return the name of the file that each weight is in."""
    check_size(index, _MAX_INDEX)
    try:
        places = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExpertError(f"{index} is no index with a weight_map: {error!r}") from None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ExpertError(f"{index}: its weight_map must name a file for each weight")
    return places
