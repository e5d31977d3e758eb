"""Experts for other programs: as a PEFT folder, or merged into the base as a checkpoint."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.files.atomic import new_folder
from adapters.files.checkpoint import Checkpoint
from adapters.files.facts import NAME
from adapters.files.peft import write_peft
from adapters.files.safetensors_reader import FLOATS, confine
from adapters.files.safetensors_writer import TensorWriter
from adapters.library.library import Library
from adapters.library.versions import VersionStore, check_fit

_BESIDE_WEIGHTS = frozenset({".json", ".jinja", ".model", ".py", ".txt"})
_INDEX_FILE = "model.safetensors.index.json"


def to_peft(library: Library, name: str, folder: Path) -> None:
    """Write an expert as a folder that PEFT loads.

    Raises ExpertError if it is not low-rank, LibraryError if the folder exists.
    """
    expert = library.expert(name)
    base = VersionStore(library.root).base
    with new_folder(folder) as staged:
        write_peft(expert, staged, base.source if base else "")


def to_checkpoint(base: Checkpoint, terms: Sequence[tuple[float, Deltas]], folder: Path) -> None:
    """Write base + sum_k c_k delta_k as a checkpoint, for terms (c_k, delta_k).

    Weights keep their names, shards and dtypes; each is summed in float32 and rounded once, and one
    that nothing changes has the same bytes. The files that say how to use the weights
    (configuration, tokenizer, templates, code) are copied. Memory: one weight in float32, and
    another as a term gives it.

    Raises ExpertError if a term does not fit the base or a sum does not fit its dtype, LibraryError
    if the folder exists.
    """
    for _, deltas in terms:
        check_fit(deltas, base)
    with new_folder(folder) as staged:
        _copy_files_beside_weights(base, staged)
        for shard in base.shards:
            tensors = next(file.tensors for file in base.files.values() if file.path.name == shard)
            kinds = {weight: (info.dtype, info.shape) for weight, info in tensors.items()}
            with TensorWriter(staged / shard, kinds) as writer:
                for weight in writer.names:
                    writer.add(weight, _change_weight(base, terms, weight))
        if len(base.shards) > 1:
            _write_index(base, staged)


def _copy_files_beside_weights(base: Checkpoint, folder: Path) -> None:
    for file in base.folder.iterdir():
        wanted = file.suffix in _BESIDE_WEIGHTS and file.name != _INDEX_FILE
        if wanted and NAME.fullmatch(file.name):
            shutil.copyfile(confine(base.folder, file.name), folder / file.name)


def _write_index(base: Checkpoint, folder: Path) -> None:
    total = sum(file.tensors[weight].nbytes for weight, file in base.files.items())
    places = {weight: file.path.name for weight, file in sorted(base.files.items())}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / _INDEX_FILE).write_text(json.dumps(index, indent=2))


def _change_weight(base: Checkpoint, terms: Sequence[tuple[float, Deltas]], weight: str) -> Tensor:
    """Return one weight of the base plus all its changes, in the base's dtype."""
    changes = [(c, deltas) for c, deltas in terms if weight in deltas.shapes]
    if not changes:
        return base.read(weight)
    dtype = base.dtypes[weight]
    if dtype not in FLOATS:
        raise ExpertError(
            f"{weight} of the base is {dtype}: a change can be merged into float16, bfloat16 and"
            " float32 only"
        )

    # The base comes last: a term's delta is ours to add to, and may be as large as the base.
    (c, first), *others = changes
    total = first.delta(weight)
    if c != 1:
        total.mul_(c)
    for c, deltas in others:
        total.add_(deltas.delta(weight), alpha=c)
    total.add_(base.read(weight))

    low, high = total.aminmax()
    if not -torch.finfo(dtype).max <= low <= high <= torch.finfo(dtype).max:
        raise ExpertError(
            f"{weight} with its changes has NaN, infinite values, or values too large for {dtype}"
        )
    return total.to(dtype)
