"""Dense experts made for a test: what random fine-tunes of a base change."""

from collections.abc import Collection
from pathlib import Path

import torch

from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from tests.factories.deltas import DenseDeltas
from tests.factories.versions import ABOUT


def add_dense(  # noqa: PLR0913 - one knob each
    root: Path,
    base: Path,
    name: str,
    *,
    seed: int,
    only: Collection[str] = (),
    strength: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> Library:
    """Add a dense expert to a library, which changes each weight by a share of its size.

    Args:
        only: Parts of the names of the weights that change; all do if there are none.
    """
    checkpoint, g = Checkpoint.open(base), torch.Generator().manual_seed(seed)
    deltas = {
        weight: torch.randn(shape, generator=g) * checkpoint.read(weight).float().std() * strength
        for weight, shape in checkpoint.shapes.items()
        if not only or any(part in weight for part in only)
    }
    form = DenseForm(dtype)
    VersionStore(root).add(name, DenseDeltas(deltas), form, ABOUT, checkpoint)
    return Library.open(root)
