"""Writing files whole or not at all; safetensors one tensor at a time, so that memory holds that tensor and no copy of it."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import torch
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNED = 8


class TensorWriter:
    """A context manager for a new file. What will be in it is told first, since a file begins with its header.

    names: the order in which tensors are to be added; wide dtypes come first, so that each lies at a multiple of its size
    """

    def __init__(self, path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """entries: dtype and shape by name. Raises FileExistsError if the file is there."""
        self.names = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))
        self._entries = dict(entries)
        self._left = iter(self.names)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.names:
            dtype, shape = entries[name]
            start, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNED)
        self._file = path.open("xb", buffering=0)
        self._write(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        assert error is not None or next(self._left, None) is None, "a tensor is missing"

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of `names`."""
        assert name == next(self._left), f"{name} is not the next"
        assert (tensor.dtype, tuple(tensor.shape)) == self._entries[name], f"{name} is not as it was said to be"
        if tensor.numel():
            self._write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview) -> None:
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors that are all there."""
    with TensorWriter(path, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}) as writer:
        for name in writer.names:
            writer.add(name, tensors[name])


def check_free(file: Path, *, replace: bool) -> None:
    """Raises LibraryError if a file is there and may not be replaced."""
    if not replace and file.exists():
        raise LibraryError(f"{file} is there already: choose another name, or replace it with --replace")


def put(file: Path, write: Callable[[Path], object], *, replace: bool) -> None:
    """Make a file, all of it or nothing; it is in its place, on the disk, when this returns. write: makes it at another place

    Raises LibraryError as `check_free`, or if the disk refuses.
    """
    check_free(file, replace=replace)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".staging-", dir=file.parent) as staging:
            part = Path(staging) / file.name
            write(part)
            sync(part)
            if replace:
                part.rename(file)
            else:
                file.hardlink_to(part)  # unlike a rename it fails if another process was faster
        sync(file.parent)
    except OSError as error:
        raise LibraryError(f"{file} could not be written: {error}") from error


def sync(path: Path) -> None:
    """Wait until a file, or which files a folder has, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
