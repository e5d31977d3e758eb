"""The shapes of weights that a quantised checkpoint packs, which its files do not tell."""

from collections.abc import Mapping
from pathlib import Path

import torch

from adapters.errors import ExpertError
from adapters.files.safetensors_reader import FLOATS

Shapes = dict[str, tuple[int, ...]]
# Models that see or hear keep their language model in some of these, and files do it otherwise than
# transformers.
_CONTAINERS = frozenset({"model", "language_model", "text_model", "llm", "thinker"})
# Of buffers, such as positions and masks, besides whole numbers that codes are packed in.
_PLAIN = FLOATS | {torch.float64, torch.int64, torch.bool, torch.complex64}


def name_within(weight: str) -> str:
    """Return a weight's name without the containers that it begins with.

    Of one weight it is the same in transformers and in files: `model.language_model.layers.0.mlp`
    of the former may be `language_model.model.layers.0.mlp` of the latter.
    """
    parts = weight.split(".")
    while len(parts) > 2 and parts[0] in _CONTAINERS:
        parts.pop(0)
    return ".".join(parts)


def find_packed(dtypes: Mapping[str, torch.dtype | str]) -> list[str]:
    """Return the tensors of a checkpoint whose dtypes are those of codes and not of weights."""
    return [name for name, dtype in dtypes.items() if dtype not in _PLAIN]


def unpack_shapes(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype | str]
) -> Shapes:
    """Return the shapes of a checkpoint's weights as the model computes with them.

    A weight that is not there as floats, whatever its module has instead (bitsandbytes' codes,
    `qweight` of GPTQ and AWQ, `weight_packed`), has its shape from the model's config.json.

    Args:
        folder: The checkpoint's.
        shapes: The shape of each tensor in its files.
        dtypes: The dtype of each.

    Raises ExpertError if something is packed and config.json is of no model that transformers has.
    """
    packed = find_packed(dtypes)
    found = dict(shapes)
    if not packed:
        return found
    modules = {
        name_within(f"{module}.weight"): module
        for name in shapes
        for module in _enclosing_modules(name)
    }
    for parameter, shape in _model_shapes(folder, packed[0]).items():
        module = modules.get(name_within(parameter))
        if module and dtypes.get(f"{module}.weight") not in FLOATS:
            found[f"{module}.weight"] = shape
    return found


def _enclosing_modules(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _model_shapes(folder: Path, packed: str) -> Shapes:
    """Return the shapes of all parameters of the model that a config.json is of."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        names = [str(name) for name in getattr(config, "architectures", None) or ()]
        kinds = [getattr(transformers, name, None) for name in names]
        known = [
            kind
            for kind in kinds
            if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        ]
        with torch.device("meta"):
            model = (
                known[0](config)
                if known
                else transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            )
    except Exception as error:  # Each architecture has its own ways to refuse a configuration.
        reason = str(error).strip().partition("\n")[0]
        raise ExpertError(
            f"{folder} is quantised ({packed} holds packed values), and its config.json does not"
            f" give the shapes of its weights: {reason}; use a PEFT folder without a known base"
        ) from None
    return {name: tuple(value.shape) for name, value in model.named_parameters()}
