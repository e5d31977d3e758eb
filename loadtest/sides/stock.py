"""Mixes as pre-merged PEFT folders, which is how vLLM's own multi-LoRA can serve them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file
from vllm.config.lora import MaxLoRARanks

from adapters.expert import Expert, LowRank
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE
from adapters.library.library import Library
from adapters.mix import Mix
from loadtest.common.workload import EXPERTS_PER_MIX, numbers_of


def rank_of(expert: Expert) -> int:
    """Return the largest rank of an expert's factors."""
    return max(factor.rank for factor in expert.factors.values())


def find_max_lora_rank(library: Library, width: int = EXPERTS_PER_MIX) -> int:
    """Return the smallest `max_lora_rank` that vLLM allows and that any merged mix fits into.

    Args:
        library: The experts.
        width: The most of them that a mix has.
    """
    ranks = sorted((rank_of(expert) for expert in library), reverse=True)
    needed = sum(ranks[:width])
    return min(int(allowed) for allowed in get_args(MaxLoRARanks) if allowed >= needed)


def merge_factors(
    coefficients: Mapping[str, float], experts: Mapping[str, Expert]
) -> dict[str, LowRank]:
    """Return a mix as one adapter: A = [a_1; ...; a_K], B = [c_1 b_1 | ... | c_K b_K].

    So B A = sum_k c_k b_k a_k.
    """
    chosen = [(c, experts[name].factors) for name, c in coefficients.items()]
    modules = sorted({module for _, factors in chosen for module in factors})
    return {
        module: _stacked([(c, f[module]) for c, f in chosen if module in f]) for module in modules
    }


def _stacked(parts: list[tuple[float, LowRank]]) -> LowRank:
    return LowRank(torch.cat([f.a for _, f in parts]), torch.cat([c * f.b for c, f in parts], 1))


def write_merged(
    folder: Path, coefficients: Mapping[str, float], experts: Mapping[str, Expert]
) -> None:
    """Write the merged adapter in float32; its alpha equals its rank, so that its scale is 1."""
    factors = merge_factors(coefficients, experts)
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    rank = max(factor.rank for factor in factors.values())
    targets = sorted({module.rpartition(".")[2] for module in factors})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "target_modules": targets,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")


def write_adapters(folder: Path, mixes: Sequence[Mix], library: Library) -> dict[str, Path]:
    """Merge each mix into an adapter of its own. Returns their folders by name, in order."""
    folders = {f"mix-{i}": folder / f"mix-{i}" for i in range(len(mixes))}
    for target, mix in zip(folders.values(), mixes, strict=True):
        write_merged(target, numbers_of(mix), library.experts)
    return folders
