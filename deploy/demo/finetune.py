"""Full fine-tunes of the base: some of its weights trained whole, and kept small.

A fine-tune is the base plus steps, which are what this project ships of it:

    W = W0 + level * step      level in -7 .. 7, a step for each row
                               for the embedding in -3 .. 3, one step; for norms the change itself

The levels are packed by LZMA. Training is over before they are rounded, and the scores are those of
the rounded weights.
"""

from __future__ import annotations

import lzma
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor

from deploy.demo.base import ensure_base
from deploy.demo.evaluate import draw_examples, score
from deploy.demo.model import load_base
from deploy.demo.train import (
    VALIDATION_N,
    Run,
    TrainingSettings,
    end_run,
    train_to_end,
    write_examples,
)

FINETUNES = Path(__file__).parent / "finetunes"
STEPS = {"triage": 160, "dates": 200}
PEAK = 3e-4
_LEVELS, _EMBEDDING_LEVELS = 7, 3


@dataclass(frozen=True)
class TrainedWeights:
    """Which weights of the base a fine-tune changes."""

    layers: tuple[int, ...]
    """The decoder layers whose matrices it changes."""
    ends: bool = False
    """Whether it changes all norms and the embedding, which is the base's head too."""

    def has(self, weight: str) -> bool:
        """Whether a weight of the base is among them."""
        if "norm" in weight or "embed_tokens" in weight:
            return self.ends
        return any(f"layers.{layer}." in weight for layer in self.layers)


TRAINED = {
    "triage": TrainedWeights(layers=(8, 14, 20)),
    "dates": TrainedWeights(layers=(8, 16), ends=True),
}
"""By task, what its fine-tune changes."""


class FinetuneRun(Run):
    """A training run of whole weights in memory."""

    @property
    def causal(self) -> Any:
        """The model that computes logits."""
        return self.model

    @property
    def checkpoint(self) -> Path:
        return super().checkpoint.with_suffix(".full.pt")

    @property
    def trained(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def get_state(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.trained.items()}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state[name])


def start_finetune(settings: TrainingSettings) -> FinetuneRun:
    """Make a fresh run: base, what of it is trained, optimiser."""
    torch.manual_seed(settings.seed)
    model, tokenizer = load_base()
    chosen = TRAINED[settings.task]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen.has(name))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0)
    return FinetuneRun(settings, model, tokenizer, optimiser)


def pack(deltas: Mapping[str, Tensor]) -> bytes:
    """Return changes of weights as levels and steps, packed."""
    tensors = {}
    for name, delta in deltas.items():
        if delta.ndim == 1:
            tensors[f"{name}.change"] = delta.half()
            continue
        # Rows of an embedding that hardly change are to be zero: it has one step for all.
        top = delta.abs().amax(1, keepdim=True)
        most = _LEVELS
        if "embed" in name:
            top, most = top.amax(0, keepdim=True), _EMBEDDING_LEVELS
        step = (top / most).half().float()
        level = torch.where(step > 0, delta / step, 0.0).round().clamp(-most, most)
        tensors[f"{name}.level"] = level.to(torch.int8)
        tensors[f"{name}.step"] = step.half()
    return lzma.compress(safetensors.torch.save(tensors), preset=9)


def unpack(packed: bytes) -> dict[str, Tensor]:
    """Return the changes that `pack` packed, float32, by the names of the weights."""
    tensors = safetensors.torch.load(lzma.decompress(packed))
    deltas = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part == "change":
            deltas[name] = tensor.float()
        elif part == "level":
            deltas[name] = tensor.float() * tensors[f"{name}.step"].float()
    return deltas


def apply_finetune(model: Any, task: str) -> None:
    """Turn the base, in transformers, into a task's fine-tune."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in unpack((FINETUNES / f"{task}.xz").read_bytes()).items():
            weights[name].add_(delta)


def write_finetune(task: str, folder: Path) -> None:
    """Write a task's fine-tune as a checkpoint, with the prompts that show what it is for.

    Args:
        task: One of `TRAINED`.
        folder: Where; it is made.
    """
    model, _ = load_base()
    apply_finetune(model, task)
    model.save_pretrained(folder)
    for file in ensure_base().iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    write_examples(task, folder, 0)


def train_finetune(settings: TrainingSettings, console: Console) -> float:
    """Train, pack and validate a fine-tune.

    Returns:
        Its exact match on the validation split.
    """
    run = start_finetune(settings)
    train_to_end(run, console)

    # Pack what has changed, and take it back for the score.
    base, _ = load_base()
    clean = dict(base.named_parameters())
    with torch.no_grad():
        packed = pack({name: weight - clean[name] for name, weight in run.trained.items()})
    FINETUNES.mkdir(parents=True, exist_ok=True)
    part = FINETUNES / f"{settings.task}.part"
    part.write_bytes(packed)
    os.replace(part, FINETUNES / f"{settings.task}.xz")
    apply_finetune(base, settings.task)
    held_out = draw_examples(settings.task, "validation", VALIDATION_N)
    validation, _ = score(base.eval(), run.tokenizer, settings.task, held_out)
    console.print(
        f"{settings.task}, full: validation exact match {validation:.2f} ({VALIDATION_N}),"
        f" {run.seconds:.0f} s, {len(packed) / 1e6:.1f} MB"
    )
    end_run(run, f"{settings.task}-full", validation, "--full ")
    return validation
