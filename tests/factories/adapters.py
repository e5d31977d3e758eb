"""Adapters made for a test by PEFT itself, with what it makes of the base when it merges them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from adapters.files.facts import CONFIG_FILE

Weights = dict[str, Tensor]


def train_adapter(folder: Path, model: nn.Module, **config: Any) -> Weights:
    """Save an adapter, all of whose trained parameters are random, as PEFT does.

    Returns the weights of the model that PEFT merges it into.
    """
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    adapted: Any = get_peft_model(model, LoraConfig(**settings | config))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=g) * 0.3)
    adapted.save_pretrained(str(folder))
    merged: nn.Module = adapted.merge_and_unload()
    return {name: value.float().clone() for name, value in merged.state_dict().items()}


def edit_config(folder: Path, **changes: Any) -> None:
    """Change options of an adapter's configuration."""
    file = folder / CONFIG_FILE
    options = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(options), encoding="utf-8")


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    """Give the tensors of an adapter other names."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({rename(key): value for key, value in tensors.items()}, file)
