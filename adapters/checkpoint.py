"""A transformers checkpoint: its weights by name, read one at a time from one safetensors file or several."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files import PICKLES, TensorFile, by_name, check_size, confined

_MAX_INDEX = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model as files hold them. files: the file of every weight."""

    folder: Path
    files: Mapping[str, TensorFile]

    @classmethod
    def open(cls, folder: Path | str) -> "Checkpoint":
        """Find and check a checkpoint's files, no data. Raises ExpertError for pickles, missing files and names twice."""
        folder = Path(folder).expanduser()
        return cls(folder, tensor_files(folder, "model"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {weight: file.entries[weight].shape for weight, file in self.files.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {weight: file.entries[weight].dtype for weight, file in self.files.items()}

    @property
    def shards(self) -> dict[str, int]:
        """The bytes of each file by its name."""
        return {file.path.name: file.path.stat().st_size for file in self.files.values()}

    def read(self, weight: str) -> Tensor:
        """One weight in its own dtype, the caller's to overwrite. Raises KeyError if it is not there."""
        return self.files[weight].read(weight)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name, dtype, shape and SHA-256 of the bytes of all weights: the same however they are sharded."""
        sha = hashlib.sha256()
        for weight, file in sorted(self.files.items()):
            entry = file.entries[weight]
            content = hashlib.sha256(file.read_bytes(weight).numpy().data).hexdigest()
            sha.update(f"{weight}|{entry.dtype}|{entry.shape}|{content}\n".encode())
        return sha.hexdigest()


def tensor_files(folder: Path, stem: str, *, max_bytes: int = 1 << 38) -> dict[str, TensorFile]:
    """The file of every tensor of `<stem>.safetensors`, or of the shards that `<stem>.safetensors.index.json` names, or
    without an index of `<stem>-00001-of-0000N.safetensors` and on.

    max_bytes: the most one file may have. Raises ExpertError if there is none of these, for a shard that is missing, a name
    twice, and an index and shards that disagree; LibraryError for a file that leads out of the folder.
    """
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    places = None
    if (folder / single).is_file():
        names = [single]
    elif (folder / index).is_file():
        places = _read_index(confined(folder, index))
        names = sorted(set(places.values()))
    else:
        names = _numbered(folder, stem)
    files = by_name(TensorFile.open(confined(folder, name), max_bytes=max_bytes) for name in names)
    found = {name: file.path.name for name, file in files.items()}
    if places not in (None, found):
        wrong = sorted(name for name, _ in found.items() ^ places.items())
        raise ExpertError(f"{folder / index} and its shards disagree about {', '.join(wrong[:5])}; save the checkpoint again")
    return files


def _numbered(folder: Path, stem: str) -> list[str]:
    found = sorted(path.name for path in folder.glob(f"{stem}-*-of-*.safetensors"))
    if not found:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        hint = f"; {pickles[0]} is a pickle, which can run code: save it as safetensors" if pickles else ""
        raise ExpertError(f"{folder} has no {stem}.safetensors{hint}")
    wanted = [f"{stem}-{k:05}-of-{len(found):05}.safetensors" for k in range(1, len(found) + 1)]
    if found != wanted:
        raise ExpertError(f"{folder} has the shards {', '.join(found[:5])}, not {wanted[0]} to {wanted[-1]}")
    return found


def _read_index(index: Path) -> dict[str, str]:
    check_size(index, _MAX_INDEX)
    try:
        places = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExpertError(f"{index} is no index with a weight_map: {error!r}") from None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ExpertError(f"{index}: its weight_map must name a file for each weight")
    return places
