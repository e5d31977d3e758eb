"""What versions of experts are made of in a test: a base of three weights, and changes of it."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert
from adapters.files.checkpoint import Checkpoint
from adapters.library.manifest import About, Source
from tests.factories.deltas import make_factor

MODULE = "model.layers.0.mlp.up_proj"
SHAPES = {
    f"{MODULE}.weight": (6, 4),
    "model.layers.1.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
}
ABOUT = About(source=Source("finetune", "/somewhere"), licence="MIT", examples=("one", "two"))


def make_checkpoint(folder: Path, seed: int) -> Checkpoint:
    """Save random weights of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    save_file(
        {w: torch.randn(s, generator=generator) for w, s in SHAPES.items()},
        folder / "model.safetensors",
    )
    return Checkpoint.open(folder)


def make_expert_deltas(seed: int, module: str = MODULE, out: int = 6) -> LowRankDeltas:
    """Return an expert of rank 2 that changes one module."""
    return LowRankDeltas(Expert("made", {module: make_factor(2, out, 4, seed)}))
