"""Writing safetensors one tensor at a time, so that memory holds that tensor and no copy of it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files.safetensors_reader import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNED = 8


class TensorWriter:
    """A context manager that writes a new file, told at the start what will be in it.

    A file begins with its header, which says where every tensor lies.

    Attributes:
        names: The order in which tensors are to be added; wide dtypes come first, so that each lies
            at a multiple of its size.
    """

    def __init__(
        self, path: Path, kinds: Mapping[str, tuple[torch.dtype | str, tuple[int, ...]]]
    ) -> None:
        """Write the header.

        Args:
            path: The file, which must not exist.
            kinds: Dtype and shape of each tensor by its name.

        Raises:
            FileExistsError: The file is there.
            ExpertError: A dtype is one that torch does not have.
        """
        dtypes = {name: _check_dtype(name, dtype) for name, (dtype, _) in kinds.items()}
        self.names = sorted(kinds, key=lambda name: (-dtypes[name].itemsize, name))
        self._kinds = dict(kinds)
        self._left = iter(self.names)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.names:
            dtype, shape = dtypes[name], kinds[name][1]
            start, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNED)
        self._file = path.open("xb", buffering=0)
        self._write(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        assert error is not None or next(self._left, None) is None, "a tensor is missing"

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, which must be the next of `names`."""
        assert name == next(self._left), f"{name} is not the next"
        assert (tensor.dtype, tuple(tensor.shape)) == self._kinds[name], (
            f"{name} is not as it was said to be"
        )
        if tensor.numel():
            self._write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview) -> None:
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors that are all in memory to a new file."""
    with TensorWriter(
        path, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    ) as writer:
        for name in writer.names:
            writer.add(name, tensors[name])


def _check_dtype(name: str, dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str):
        raise ExpertError(
            f"{name} has the dtype {dtype}, of which torch has no tensors to write; use the"
            " checkpoint from before it was quantised"
        )
    return dtype
