"""Trained gates: how much each direction that an expert reads in a weight speaks for it there.

    s_k = ||h_k * sqrt(g_k)|| + d_k,    h_k = V^T x,

of the canonical factors b_k a_k = (U S) V^T of one weight. Learned for each weight of each expert,
as MoLE (Wu et al. 2024, arXiv 2404.13628) and X-LoRA (Buehler and Buehler 2024, arXiv 2402.07148)
learn theirs, but read from the product that the bank makes anyway, where they have one of their
own. An expert that no gate was trained for has g = 1 and d = 0, which is SpectR's score.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.errors import LibraryError
from adapters.files.atomic import write_atomically
from adapters.files.safetensors_reader import TensorFile
from adapters.files.safetensors_writer import save

LAYER_GATES = Path("router") / "layer-gates.safetensors"
"""Where a library keeps its gates."""


class LayerGate(NamedTuple):
    """The gate of one weight of an expert."""

    g: Tensor
    """[rank], the weight of each direction; none is negative."""
    d: float
    """What is added to the score."""


Gates = Mapping[str, Mapping[str, LayerGate]]
"""Gates by the expert's digest and the module's name."""


def make_untrained_gate(rank: int) -> LayerGate:
    """Return the gate with which the score is SpectR's."""
    return LayerGate(torch.ones(rank), 0.0)


def write_gates(file: Path, gates: Gates, *, replace: bool) -> None:
    """Write gates to one safetensors file, all of it or nothing.

    Raises LibraryError if the file is there and may not be replaced, or if the disk refuses.
    """
    tensors = {
        f"{digest}/{module}": torch.cat([gate.g, torch.tensor([gate.d])])
        for digest, own in gates.items()
        for module, gate in own.items()
    }
    write_atomically(file, lambda part: save(tensors, part), replace=replace)


def read_gates(file: Path) -> Gates:
    """Read the gates that `write_gates` wrote.

    Raises LibraryError if there is no such file, or for anything else in it.
    """
    if not file.is_file():
        raise LibraryError(
            f"there is no {file}; make it with: tta router gates --library DIR --base FOLDER"
        )
    found: dict[str, dict[str, LayerGate]] = {}
    gates = TensorFile.open(file)
    for key in gates.tensors:
        digest, slash, module = key.partition("/")
        values = gates.read(key)
        fits = slash and values.dtype == torch.float32 and values.ndim == 1 and len(values) > 1
        if not fits or not values.isfinite().all() or (values[:-1] < 0).any():
            raise LibraryError(
                f"{file}: {key} is no gate; make the file anew with: tta router gates"
            )
        found.setdefault(digest, {})[module] = LayerGate(values[:-1], float(values[-1]))
    return found
