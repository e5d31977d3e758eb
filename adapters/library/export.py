"""Experts for other programs: as a PEFT folder, or merged into the base as a checkpoint."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.files.atomic import new_folder
from adapters.files.beside_weights import copy_beside_weights
from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import type_of
from adapters.files.peft import write_peft
from adapters.files.safetensors_reader import FLOATS
from adapters.files.safetensors_writer import TensorWriter
from adapters.library.library import Library
from adapters.library.versions import VersionStore, check_fit

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Rounding:
    """What rounding into the base's dtypes left of the changes in a checkpoint.

    For weights W, their change D and the rounded sum R it is 1 - |R - W - D|^2 / |D|^2, the share
    of the change's energy. A change smaller than half the step from one number of the dtype to the
    next is lost: then R = W.
    """

    kept: Mapping[str, float]
    """By type of module, such as q_proj."""
    total: float
    """Of all weights together; 1 if nothing changes."""


def to_peft(library: Library, name: str, folder: Path) -> None:
    """Write an expert as a folder that PEFT loads.

    Raises ExpertError if it is not low-rank, LibraryError if the folder exists.
    """
    expert = library.expert(name)
    base = VersionStore(library.root).base
    with new_folder(folder) as staged:
        source = base.source if base else ""
        write_peft(expert, staged, source, library.invocation(name))


def to_checkpoint(
    base: Checkpoint, terms: Sequence[tuple[float, Deltas]], folder: Path
) -> Rounding:
    """Write base + sum_k c_k delta_k as a checkpoint, for terms (c_k, delta_k).

    Weights keep their names, shards and dtypes; each is summed in float32 and rounded once, and one
    that nothing changes has the same bytes. All that lies beside the weights and is none of them
    (configuration, tokenizer, templates, code, licence) is copied. Memory: one weight in float32,
    and another as a term gives it.

    Returns what rounding left of the changes. Raises ExpertError if a term does not fit the base or
    a sum does not fit its dtype, LibraryError if the folder exists.
    """
    for _, deltas in terms:
        check_fit(deltas, base)
    energies = _Energies()
    with new_folder(folder) as staged:
        copy_beside_weights(base.folder, staged)
        for shard in base.shards:
            tensors = next(file.tensors for file in base.files.values() if file.path.name == shard)
            kinds = {weight: (info.dtype, info.shape) for weight, info in tensors.items()}
            with TensorWriter(staged / shard, kinds) as writer:
                for weight in writer.names:
                    writer.add(weight, _change_weight(base, terms, weight, energies))
        if base.shards.keys() != {_SINGLE_FILE}:
            _write_index(base, staged)
    return energies.summarise()


def _write_index(base: Checkpoint, folder: Path) -> None:
    total = sum(file.tensors[weight].nbytes for weight, file in base.files.items())
    places = {weight: file.path.name for weight, file in sorted(base.files.items())}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / _INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")


class _Energies:
    """The energies of changes and of what rounding took from them, by type of module."""

    def __init__(self) -> None:
        self._changed, self._lost = defaultdict[str, float](float), defaultdict[str, float](float)

    def add(self, weight: str, changed: float, lost: float) -> None:
        self._changed[type_of(weight)] += changed
        self._lost[type_of(weight)] += lost

    def summarise(self) -> Rounding:
        kept = {
            kind: _share(changed, self._lost[kind])
            for kind, changed in sorted(self._changed.items())
        }
        return Rounding(kept, _share(sum(self._changed.values()), sum(self._lost.values())))


def _share(changed: float, lost: float) -> float:
    return 1 - lost / changed if changed else 1.0


def _change_weight(
    base: Checkpoint, terms: Sequence[tuple[float, Deltas]], weight: str, energies: _Energies
) -> Tensor:
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

    (c, first), *others = changes
    change = first.delta(weight)
    if c != 1:
        change.mul_(c)
    for c, deltas in others:
        change.add_(deltas.delta(weight), alpha=c)

    return _add_rounded(weight, base.read(weight), change, energies)


def _add_rounded(weight: str, values: Tensor, change: Tensor, energies: _Energies) -> Tensor:
    """Add a change to a base's weight in float32, and round it to the weight's dtype."""
    limit = torch.finfo(values.dtype).max
    changed = lost = 0.0
    # By blocks, which stay in the processor's cache from one step to the next.
    for part, block in zip(
        change.reshape(-1).split(_BLOCK), values.view(-1).split(_BLOCK), strict=True
    ):
        before = block.float()
        total = before + part
        low, high = total.aminmax()
        if not -limit <= low <= high <= limit:
            raise ExpertError(
                f"{weight} with its changes has NaN, infinite values, or values too large for"
                f" {values.dtype}"
            )
        rounded = total.to(values.dtype)
        changed += _square(part)
        lost += _square((rounded.float() - before).sub_(part))
        block.copy_(rounded)
    energies.add(weight, changed, lost)
    return values


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
