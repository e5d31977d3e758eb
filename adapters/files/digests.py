"""The digest of tensors in files, read in small blocks by several threads."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from adapters.errors import ExpertError
from adapters.files.safetensors_reader import TensorFile

_BLOCK = 1 << 20
_THREADS = min(4, os.cpu_count() or 1)


def digest_tensors(files: Mapping[str, TensorFile]) -> str:
    """Return SHA-256 over name, dtype, shape and SHA-256 of the bytes of all tensors.

    It is the same however the tensors are spread over files. Memory: a block of each thread, which
    hash side by side since that needs no interpreter.

    Args:
        files: The file of each tensor, by its name.

    Raises ExpertError if a file was cut since it was opened.
    """
    names = sorted(files)
    with ThreadPoolExecutor(_THREADS) as threads:
        contents = list(threads.map(lambda name: _hash_content(files[name], name), names))
    sha = hashlib.sha256()
    for name, content in zip(names, contents, strict=True):
        info = files[name].tensors[name]
        sha.update(f"{name}|{info.dtype}|{info.shape}|{content}\n".encode())
    return sha.hexdigest()


def _hash_content(file: TensorFile, name: str) -> str:
    info, sha = file.tensors[name], hashlib.sha256()
    block = bytearray(min(_BLOCK, info.nbytes))
    left = info.nbytes
    with file.path.open("rb", buffering=0) as stream:
        stream.seek(info.start)
        while left:
            count = stream.readinto(memoryview(block)[:left])
            if not count:
                raise ExpertError(f"{file.path} ends inside {name}: it changed while it was read")
            sha.update(memoryview(block)[:count])
            left -= count
    return sha.hexdigest()
