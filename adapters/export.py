"""Experts as other programs read them: a PEFT folder, or a checkpoint with the changes merged into the base."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from adapters.checkpoint import Checkpoint
from adapters.deltas import Deltas
from adapters.errors import ExpertError, LibraryError
from adapters.files import FLOATS, NAME, confined
from adapters.library import Library
from adapters.peft_format import write_peft
from adapters.store import Store, check_fit
from adapters.writing import TensorWriter

_BESIDE_WEIGHTS = frozenset({".json", ".jinja", ".model", ".py", ".txt"})
_INDEX_FILE = "model.safetensors.index.json"


def to_peft(library: Library, name: str, folder: Path) -> None:
    """Write an expert as a folder that PEFT loads.

    Raises ExpertError if it is not low-rank, LibraryError if the folder exists.
    """
    expert, base = library.expert(name), Store(library.root).base
    with _made(folder) as staged:
        write_peft(expert, staged, base.source if base else "")


def to_checkpoint(base: Checkpoint, terms: Sequence[tuple[float, Deltas]], folder: Path) -> None:
    """Write base + sum_k c_k delta_k as a checkpoint, for terms (c_k, delta_k).

    Weights keep their names, shards and dtypes, summed in float32 and rounded once; those that nothing changes are the same
    bytes. The files that say how to use them (configuration, tokenizer, templates, code) are copied. Memory: one weight, in
    float32, and another as a term gives it.

    Raises ExpertError if a term does not fit the base or a sum does not fit its dtype, LibraryError if the folder exists.
    """
    for _, deltas in terms:
        check_fit(deltas, base)
    with _made(folder) as staged:
        for file in base.folder.iterdir():
            if file.suffix in _BESIDE_WEIGHTS and file.name != _INDEX_FILE and NAME.fullmatch(file.name):
                shutil.copyfile(confined(base.folder, file.name), staged / file.name)
        for shard in base.shards:
            entries = next(file.entries for file in base.files.values() if file.path.name == shard)
            kinds = {weight: (entry.dtype, entry.shape) for weight, entry in entries.items()}
            with TensorWriter(staged / shard, kinds) as writer:
                for weight in writer.names:
                    writer.add(weight, _changed(base, terms, weight))
        if len(base.shards) > 1:
            total = sum(file.entries[weight].nbytes for weight, file in base.files.items())
            places = {weight: file.path.name for weight, file in sorted(base.files.items())}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (staged / _INDEX_FILE).write_text(json.dumps(index, indent=2))


def _changed(base: Checkpoint, terms: Sequence[tuple[float, Deltas]], weight: str) -> Tensor:
    changes = [(c, deltas) for c, deltas in terms if weight in deltas.shapes]
    if not changes:
        return base.read(weight)
    dtype = base.dtypes[weight]
    if dtype not in FLOATS:
        raise ExpertError(f"{weight} of the base is {dtype}: a change can be merged into float16, bfloat16 and float32 only")
    (c, first), *others = changes
    total = first.delta(weight)
    if c != 1:
        total.mul_(c)
    for c, deltas in others:
        total.add_(deltas.delta(weight), alpha=c)
    total.add_(base.read(weight))
    low, high = total.aminmax()
    if not -torch.finfo(dtype).max <= low <= high <= torch.finfo(dtype).max:
        raise ExpertError(f"{weight} with its changes has NaN, infinite values, or values too large for {dtype}")
    return total.to(dtype)


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A new folder that is `folder` at the end, or nothing if anything fails. Raises LibraryError if there cannot be one."""
    if folder.exists() or folder.is_symlink():
        raise LibraryError(f"{folder} exists; name a folder that does not")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            staged = Path(beside) / folder.name
            staged.mkdir()
            yield staged
            staged.rename(folder)
    except OSError as error:
        raise LibraryError(f"{folder} could not be written: {error}") from error
