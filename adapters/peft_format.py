"""Read a PEFT LoRA folder exactly, or refuse it by name."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# Options of PEFT's LoraConfig that change the arithmetic in ways `b @ a` cannot express.
_UNSUPPORTED = {
    "use_dora": "DoRA rescales columns of the merged weight",
    "modules_to_save": "it holds full copies of modules",
    "lora_bias": "it trains a bias beside B",
    "fan_in_fan_out": "its weights are stored transposed",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts bare parameters",
    "trainable_token_indices": "it retrains token embeddings",
    "alora_invocation_tokens": "it is active only after an invocation string",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes among adapters by itself",
}


def is_peft_folder(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file()


def load_peft(path: Path, name: str | None = None) -> Expert:
    """The LoRA in `path` as an Expert, the scale folded into B.

    Scale per module: alpha / rank, or alpha / sqrt(rank) with `use_rslora` (Kalajdzievski 2023, arXiv 2312.03732), with
    `rank_pattern` and `alpha_pattern` honoured as PEFT does.

    Raises ExpertError for anything that this form cannot represent exactly; nothing is ever partly loaded.
    """
    name = name or path.name
    config = _read_config(path, name)
    tensors = _read_tensors(path, name)
    pairs: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        match = _TENSOR.fullmatch(key.removeprefix(_PREFIX))
        if match is None:
            raise ExpertError(f"expert {name!r}: tensor {key} is not a LoRA factor of a linear layer; retrain without it")
        pairs.setdefault(match["module"], {})[match["side"]] = value.float()
    factors = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ExpertError(f"expert {name!r}: {module} has only the {next(iter(pair))} factor")
        rank = pair["A"].shape[0]
        stated = _pattern_value(config.get("rank_pattern"), module, config["r"])
        if stated != rank:
            raise ExpertError(f"expert {name!r}: {module} has rank {rank}, its config says {stated}")
        factors[module] = LowRank(pair["A"], pair["B"] * _scale(config, module, rank))
    return Expert(name, factors)


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = _pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _pattern_value(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name as a regular expression, at a dot."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG_FILE).read_text())
    except FileNotFoundError:
        raise ExpertError(f"expert {name!r}: {path} has no {CONFIG_FILE}; a PEFT adapter folder is wanted") from None
    except ValueError as error:
        raise ExpertError(f"expert {name!r}: {CONFIG_FILE} is not JSON: {error}") from None
    if config.get("peft_type") != "LORA":
        raise ExpertError(f"expert {name!r}: peft_type is {config.get('peft_type')!r}, only LORA is supported")
    if config.get("bias", "none") != "none":
        raise ExpertError(f"expert {name!r}: bias={config['bias']!r} trains biases; retrain with bias='none'")
    for option, reason in _UNSUPPORTED.items():
        if config.get(option):
            raise ExpertError(f"expert {name!r}: {option} is set and {reason}; a plain LoRA is wanted")
    for option in ("r", "lora_alpha"):
        if not isinstance(config.get(option), int | float) or config[option] <= 0:
            raise ExpertError(f"expert {name!r}: {option} in {CONFIG_FILE} must be a positive number")
    return dict(config)


def _read_tensors(path: Path, name: str) -> dict[str, Any]:
    file = path / WEIGHTS_FILE
    if not file.is_file():
        pickled = [p.name for p in path.glob("*.bin")]
        hint = f"; {pickled[0]} is a pickle, which can run code: save it as safetensors" if pickled else ""
        raise ExpertError(f"expert {name!r}: {path} has no {WEIGHTS_FILE}{hint}")
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise ExpertError(f"expert {name!r}: {WEIGHTS_FILE} cannot be read: {error}") from None
