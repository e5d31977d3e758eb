"""Safe reading of tensors that somebody else wrote: safetensors only, checked before any data."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.errors import ExpertError, LibraryError
from adapters.files.facts import NAME, resolve

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
"""Dtypes whose values float32 holds exactly."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
"""Endings of files that can run code when they are read."""
_MAX_HEADER = 100_000_000
_MAX_FILE = 1 << 38
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The dtypes of the format that torch has, by the format's names."""
FOREIGN_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits of a value of the format's other dtypes, of which torch has no tensors of this layout."""


class TensorInfo(NamedTuple):
    """What a file's header says of one tensor, which lies in its bytes [start, stop)."""

    dtype: torch.dtype | str
    """That of torch, or its name where torch has none."""
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.stop - self.start


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header was checked.

    Every tensor lies in the file, none overlaps another, and no byte is left over.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    """What the header says of each tensor, by its name."""
    metadata: Mapping[str, str]
    """What else the header says."""

    @classmethod
    def open(cls, path: Path, *, max_bytes: int = _MAX_FILE) -> "TensorFile":
        """Read and check the header, but no data.

        Raises ExpertError that names the file and what is wrong with it.
        """
        if path.suffix in PICKLES:
            raise ExpertError(f"{path} is a pickle, which can run code: save it as safetensors")
        try:
            return cls(path, *_read_header(path, max_bytes))
        except (OSError, ValueError, RecursionError) as error:
            raise ExpertError(f"{path} cannot be read as safetensors: {error}") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype | str]:
        """The dtype of every tensor."""
        return {name: info.dtype for name, info in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor, the caller's to overwrite.

        Raises as `read_bytes` does, and ExpertError for a dtype that torch does not have.
        """
        info = self.tensors[name]
        if isinstance(info.dtype, str):
            raise ExpertError(
                f"{self.path}: {name} has the dtype {info.dtype}, of which torch has no tensors;"
                " use the checkpoint from before it was quantised"
            )
        return self.read_bytes(name).view(info.dtype).reshape(info.shape)

    def read_bytes(self, name: str) -> Tensor:
        """Return the bytes of one tensor, uint8.

        They are read, not mapped, so that memory holds this tensor and no more of the file.

        Raises KeyError if it is not there, ExpertError if the file was cut since it was opened.
        """
        info = self.tensors[name]
        data = torch.empty(info.nbytes, dtype=torch.uint8)
        view = data.numpy().data
        with self.path.open("rb", buffering=0) as file:
            file.seek(info.start)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise ExpertError(
                        f"{self.path} ends inside {name}: it changed while it was read"
                    )
                done += count
        return data


def index_tensors(files: Iterable[TensorFile]) -> dict[str, TensorFile]:
    """Return the file of every tensor by its name; raise ExpertError if two files hold one name."""
    found: dict[str, TensorFile] = {}
    for file in files:
        for name in file.tensors:
            if name in found:
                raise ExpertError(f"{name} is in {found[name].path} and in {file.path}; remove one")
            found[name] = file
    return found


def confine(root: Path, name: str) -> Path:
    """Return the path of `name`, one plain name from outside, directly below `root`.

    Raises LibraryError unless the name is 1 to 64 ASCII letters, digits, `.`, `_`, `-`, the first a
    letter or digit (so neither `..`, nor absolute, nor a look-alike), and leads, links followed, to
    a place inside `root`, as `stays_inside` says.
    """
    if not NAME.fullmatch(name):
        raise LibraryError(
            f"name {name!r}: at most 64 letters, digits, dots, dashes and underscores are allowed"
        )
    if not stays_inside(root, root / name):
        raise LibraryError(f"{name} leads out of {root}; copy it there instead of linking it")
    return root / name


def stays_inside(root: Path, path: Path) -> bool:
    """Return whether a path leads, links followed, to a place inside a folder.

    In a snapshot of the Hugging Face hub's cache (`snapshots/<revision>` beside `blobs`), and in
    the folders of such a one, links into that cache's `blobs` are its way to store, and fine.
    """
    place, home = resolve(path), resolve(root)
    stores = (
        folder.parent.parent / "blobs"
        for folder in (home, *home.parents)
        if folder.parent.name == "snapshots"
    )
    return any(place.is_relative_to(folder) for folder in (home, *stores))


def check_size(path: Path, most: int) -> int:
    """Return how many bytes a file has; raise ExpertError if they are more than `most`."""
    size = path.stat().st_size
    if size > most:
        raise ExpertError(f"{path} has {size} bytes; at most {most} are read")
    return size


def _read_header(path: Path, max_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return what the header says of each tensor, and its metadata."""
    size = check_size(path, max_bytes)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"its header is said to have {length} bytes, the file has {size}")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("its metadata are no strings by name")
    tensors = {name: _read_info(name, value, 8 + length) for name, value in header.items()}

    # One tensor after the other, from the header to the end of the file.
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.start != end:
            raise ValueError(f"{name} starts at byte {info.start}, what precedes it ends at {end}")
        end = info.stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    return tensors, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is twice in its header")
    return found


def _read_info(name: str, value: object, data: int) -> TensorInfo:
    """Check what a header says of a tensor; `data` is where its offsets begin to count."""
    if not name.isprintable():
        raise ValueError(f"{name!a} is no name of a tensor")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has no dtype, shape and data_offsets")
    kind, shape, offsets = str(value["dtype"]), value["shape"], value["data_offsets"]
    if kind not in DTYPES and kind not in FOREIGN_BITS:
        known = ", ".join([*DTYPES, *FOREIGN_BITS])
        raise ValueError(f"{name} has the unknown dtype {kind!a}; known are {known}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has the shape {shape!a} and the offsets {offsets!a}")
    start, stop = offsets
    bits = FOREIGN_BITS[kind] if kind in FOREIGN_BITS else 8 * DTYPES[kind].itemsize
    if 8 * (stop - start) != math.prod(shape) * bits:
        raise ValueError(f"{name}, {kind} {shape}, lies in {stop - start} bytes")
    return TensorInfo(DTYPES.get(kind, kind), tuple(shape), data + start, data + stop)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
