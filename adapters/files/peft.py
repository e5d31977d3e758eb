"""PEFT LoRA folders: read exactly, or refused by name; and written."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.files.checkpoint import find_tensor_files
from adapters.files.facts import CONFIG_FILE, WEIGHTS_FILE, is_peft_folder
from adapters.files.safetensors_reader import FLOATS, check_size, confine
from adapters.files.safetensors_writer import save

_STEM = WEIGHTS_FILE.removesuffix(".safetensors")
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_MAX_CONFIG = 1 << 24
_MAX_WEIGHTS = 1 << 34

_MERGE = "merge it into a full checkpoint with PEFT's merge_and_unload and add that as a fine-tune"
_RETRAIN = "retrain it as a plain LoRA"
# Options of PEFT's LoraConfig that change the arithmetic in ways that `b @ a` cannot express: the
# reason, and what to do.
_UNSUPPORTED = {
    "use_dora": ("DoRA rescales rows of the merged weight", _MERGE),
    "modules_to_save": ("it holds full copies of modules", _MERGE),
    "lora_bias": ("it trains a bias beside B", _MERGE),
    "fan_in_fan_out": (
        "its base stores weights transposed (Conv1D), which would transpose the change",
        _MERGE,
    ),
    "target_parameters": ("it adapts bare parameters", _MERGE),
    "trainable_token_indices": ("it retrains token embeddings", _MERGE),
    "kasa_config": ("KaSA cuts singular values off the base's weights", _MERGE),
    "layer_replication": ("it repeats layers of the base", _RETRAIN),
    "alora_invocation_tokens": ("it is active only after an invocation string", _RETRAIN),
    "use_bdlora": ("its factors are block-diagonal", _RETRAIN),
    "use_qalora": ("its A reads averages of the input", _RETRAIN),
    "monteclora_config": ("it samples its factors", _RETRAIN),
    "arrow_config": ("it routes among adapters by itself", _RETRAIN),
}
# Those of PEFT's initialisations that leave the base's weights as they are; the others (PiSSA,
# OLoRA, CorDA, LoRA-GA, LoftQ) change them, so that B A is no change of the base.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def load_peft(path: Path, name: str | None = None) -> Expert:
    """Return the LoRA of a folder as an expert, the scale folded into B.

    The scale of a module is alpha / rank, or alpha / sqrt(rank) with `use_rslora` (Kalajdzievski
    2023, arXiv 2312.03732), with `rank_pattern` and `alpha_pattern` honoured as PEFT does.

    Raises ExpertError for anything that factors cannot represent exactly, and LibraryError for a
    file that leads out of the folder; nothing is ever partly loaded.
    """
    name = name or path.name
    config = _read_config(path, name)

    # The two sides of each module, A and B.
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, file in find_tensor_files(path, _STEM, max_bytes=_MAX_WEIGHTS).items():
        match = _TENSOR.fullmatch(key.removeprefix(_PREFIX))
        if match is None or file.tensors[key].dtype not in FLOATS:
            raise ExpertError(
                f"expert {name!r}: tensor {key} is not a LoRA factor of a linear layer in float32,"
                f" float16 or bfloat16; {_MERGE}"
            )
        pairs.setdefault(match["module"], {})[match["side"]] = file.read(key).float()

    factors = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ExpertError(f"expert {name!r}: {module} has only the {next(iter(pair))} factor")
        rank = pair["A"].shape[0]
        stated = _pattern_value(config.get("rank_pattern"), module, config["r"])
        if stated != rank:
            raise ExpertError(
                f"expert {name!r}: {module} has rank {rank}, its config says {stated}"
            )
        factors[module] = LowRank(pair["A"], pair["B"] * _scale(config, module, rank))
    return Expert(name, factors)


def write_peft(expert: Expert, folder: Path, base_name: str) -> None:
    """Write an expert as a folder that PEFT loads.

    The scale is 1: alpha = rank for every module, by patterns where ranks differ.

    Args:
        expert: What to write.
        folder: Where to, made if it is not there.
        base_name: The name or path of the base, for PEFT to find it.

    Raises ExpertError if the folder holds an adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_peft_folder(folder):
        raise ExpertError(f"{folder} holds an adapter already; name another folder")
    tensors = {}
    for module, factor in expert.factors.items():
        for side, part in zip("AB", factor, strict=True):
            tensors[f"{_PREFIX}{module}.lora_{side}.weight"] = part.float()
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
    save(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies the product B A of a module with."""
    alpha = _pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _pattern_value(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of a module's name, as PEFT does.

    Keys are regular expressions, and an end begins at a dot.
    """
    for key, value in (pattern or {}).items():
        if re.match(_ending(key), module):
            return value
    return default


def _read_config(path: Path, name: str) -> dict[str, Any]:
    """Return the configuration of an adapter; raise ExpertError for what cannot be represented."""
    if not is_peft_folder(path):
        raise ExpertError(
            f"expert {name!r}: {path} has no {CONFIG_FILE}; a PEFT adapter folder is wanted"
        )
    file = confine(path, CONFIG_FILE)
    check_size(file, _MAX_CONFIG)
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ExpertError(f"expert {name!r}: {CONFIG_FILE} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ExpertError(f"expert {name!r}: peft_type is {kind!r}, only LORA is supported")
    if config.get("bias", "none") != "none":
        raise ExpertError(
            f"expert {name!r}: bias={config['bias']!r} trains biases; retrain with bias='none', or"
            f" {_MERGE}"
        )
    for option, (reason, advice) in _UNSUPPORTED.items():
        if config.get(option):
            raise ExpertError(f"expert {name!r}: {option} is set and {reason}; {advice}")
    if config.get("init_lora_weights") not in _INITIALISATIONS:
        raise ExpertError(
            f"expert {name!r}: init_lora_weights={config['init_lora_weights']!r} changes the base's"
            " weights; save it with save_pretrained's path_initial_model_for_weight_conversion,"
            f" which makes it a plain LoRA, or {_MERGE}"
        )
    _check_numbers(config, name)
    return config


def _check_numbers(config: dict[str, Any], name: str) -> None:
    for option in ("r", "lora_alpha"):
        if not _is_positive(config.get(option)):
            raise ExpertError(
                f"expert {name!r}: {option} in {CONFIG_FILE} must be a positive number"
            )
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(option) or {}
        if not isinstance(pattern, dict) or not all(
            _is_usable(k) and _is_positive(v) for k, v in pattern.items()
        ):
            raise ExpertError(
                f"expert {name!r}: {option} in {CONFIG_FILE} must give positive numbers by names of"
                " modules or simple patterns"
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _is_usable(pattern: str) -> bool:
    """Whether a regular expression from outside is sound, and cannot run for ever."""
    has_repeated_group = re.search(r"\(\?|\)[*+?{]", pattern)
    if has_repeated_group or len(re.findall(r"[*+?{]", pattern)) > 4 or len(pattern) > 256:
        return False
    try:
        return bool(re.compile(_ending(pattern)))
    except re.error:
        return False


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"
