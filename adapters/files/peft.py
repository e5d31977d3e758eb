"""PEFT LoRA folders: read exactly, or refused by name; and written."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from adapters.deltas import Deltas, LowRankDeltas
from adapters.errors import ExpertError
from adapters.expert import Expert
from adapters.files.checkpoint import Checkpoint
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE, is_peft_folder
from adapters.files.paths import name_unreadable
from adapters.files.peft_deltas import AdapterDeltas
from adapters.files.peft_names import PREFIX
from adapters.files.peft_reader import ADD, is_embedding, read_adapter
from adapters.files.safetensors_writer import save


def load_peft(path: Path, name: str | None = None, base: Checkpoint | None = None) -> Expert:
    """Return the LoRA of a folder as an expert, the scale folded into B.

    Args:
        path: The folder.
        name: The expert's, by default the folder's.
        base: What it changes, whose names and shapes of weights the expert then has; by default
            modules have the names that they have in the folder.

    Raises ExpertError for anything that factors cannot represent exactly, and LibraryError for a
    file that leads out of the folder; nothing is ever partly loaded.
    """
    with name_unreadable(path):
        parts = read_adapter(path, name or path.name, base)
        if not parts.is_low_rank:
            raise ExpertError(
                f"expert {parts.expert!r}: it is more than the factors of a LoRA; {ADD}"
            )
        return parts.to_expert()


def open_adapter(path: Path, base: Checkpoint, name: str | None = None) -> Deltas:
    """Return what the LoRA of a folder changes of its base.

    That is known by factors where it is a plain LoRA, and dense where it is more: DoRA, whole
    modules, biases.

    Raises ExpertError for what is not followed just as PEFT does, and LibraryError for a file that
    leads out of the folder.
    """
    parts = read_adapter(path, name or path.name, base)
    if parts.is_low_rank:
        return LowRankDeltas(parts.to_expert())
    return AdapterDeltas(base, parts)


def write_peft(
    expert: Expert, folder: Path, base_name: str, invocation: Sequence[int] = ()
) -> None:
    """Write an expert as a folder that PEFT loads.

    The scale is 1: alpha = rank for every module, by patterns where ranks differ.

    Args:
        expert: What to write.
        folder: Where to, made if it is not there.
        base_name: The name or path of the base, for PEFT to find it.
        invocation: The tokens from which on alone it acts, if there are any.

    Raises ExpertError if the folder holds an adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_peft_folder(folder):
        raise ExpertError(f"{folder} holds an adapter already; name another folder")
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in expert.factors.items():
        if is_embedding(module):
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = b.t().float()
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = a.t().float()
        else:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a.float()
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b.float()
    rank = Counter(factor.rank for factor in expert.factors.values()).most_common(1)[0][0]
    others = {
        f"^{re.escape(module)}": f.rank for module, f in expert.factors.items() if f.rank != rank
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": sorted(expert.factors),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "bias": "none",
        "inference_mode": True,
    }
    if invocation:
        config["alora_invocation_tokens"] = list(invocation)
    save(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
