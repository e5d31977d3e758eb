"""Trained gates: how much each direction that an expert reads in a weight speaks for the expert there.

    s_k = ||h_k * sqrt(g_k)|| + d_k        h_k = V^T x, of the canonical factors b_k a_k = (U S) V^T of one weight

Learned for each weight of each expert, as MoLE (Wu et al. 2024, arXiv 2404.13628) and X-LoRA (Buehler and Buehler 2024, arXiv
2402.07148) learn theirs, but read from the product that the bank makes anyway, where they have one of their own. An expert
that no gate was trained for has g = 1 and d = 0, which is SpectR's score.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files import TensorFile
from adapters.writing import put, save

LAYER_GATES = Path("router") / "layer-gates.safetensors"  # in a library


class LayerGate(NamedTuple):
    """Of one weight of an expert. g: [rank], none negative   d: a number"""

    g: Tensor
    d: float


Gates = Mapping[str, Mapping[str, LayerGate]]  # by the expert's digest and module


def untrained(rank: int) -> LayerGate:
    return LayerGate(torch.ones(rank), 0.0)


def write_gates(file: Path, gates: Gates, *, replace: bool) -> None:
    """Raises LibraryError if there are gates and they are not to be replaced, or the disk refuses."""
    tensors = {
        f"{digest}/{module}": torch.cat([gate.g, torch.tensor([gate.d])])
        for digest, own in gates.items()
        for module, gate in own.items()
    }
    put(file, lambda part: save(tensors, part), replace=replace)


def read_gates(file: Path) -> Gates:
    """Raises LibraryError if there are none, or for what `write_gates` does not write."""
    if not file.is_file():
        raise LibraryError(f"there is no {file}; make it with: tta router gates --library DIR --base FOLDER")
    found: dict[str, dict[str, LayerGate]] = {}
    opened = TensorFile.open(file)
    for key in opened.entries:
        digest, slash, module = key.partition("/")
        values = opened.read(key)
        fits = slash and values.dtype == torch.float32 and values.ndim == 1 and len(values) > 1
        if not fits or not values.isfinite().all() or (values[:-1] < 0).any():
            raise LibraryError(f"{file}: {key} is no gate; make the file anew with: tta router gates")
        found.setdefault(digest, {})[module] = LayerGate(values[:-1], float(values[-1]))
    return found
