"""What a checkpoint's config.json says of the computation, beside its weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from adapters.errors import ExpertError
from adapters.files.safetensors_reader import check_size

CONFIG_FILE = "config.json"
_MAX_CONFIG = 1 << 24
# What says how a model is trained, saved, asked or shown, and not what it computes of given tokens;
# the sizes and ties of embeddings are seen in the weights themselves.
_SAYS_NOTHING = """
    _attn_implementation _commit_hash _name_or_path architectures attn_implementation auto_map
    bad_words_ids bos_token_id decoder_start_token_id dtype eos_token_id finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range
    is_decoder keys_to_ignore_at_inference label2id max_length num_labels output_attentions
    output_hidden_states output_router_logits pad_token_id prefix pretraining_tp problem_type
    quantization_config return_dict router_aux_loss_coef router_jitter_noise sep_token_id
    task_specific_params tie_word_embeddings tokenizer_class torch_dtype torchscript
    transformers_version unsloth_fixed unsloth_version use_cache vocab_size
"""
_HARMLESS = frozenset(_SAYS_NOTHING.split())
_DROPOUT = ("dropout", "pdrop", "dropout_prob", "dropout_rate")


@dataclass(frozen=True)
class TextModelConfig:
    """The text model's part of a configuration, with transformers' defaults where it knows it."""

    folder: Path
    """Where it was read."""
    values: Mapping[str, Any]
    """Its values, those inside of others by keys with dots."""
    layers: int | None
    """Of the decoder, None if the configuration does not say."""
    tied: bool | None
    """Whether the head is the embedding, None if the configuration does not say."""

    @classmethod
    def read(cls, folder: Path) -> "TextModelConfig | None":
        """Read a checkpoint's configuration; return None if there is none.

        Raises ExpertError that names the file if it is no JSON object, or has no valid values.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            return None
        check_size(file, _MAX_CONFIG)
        whole, text, known = _complete(folder, _parse(file))
        values = dict(_flatten(text))
        layers = values.get("num_hidden_layers")
        tied = whole.get("tie_word_embeddings", values.get("tie_word_embeddings"))
        chosen = {k: value for k, value in values.items() if k.partition(".")[0] in known}
        return cls(
            folder,
            chosen if known else values,
            layers if isinstance(layers, int) else None,
            tied if isinstance(tied, bool) else None,
        )


def check_same_computation(tuned: Path, base: Path) -> None:
    """Raise ExpertError that names the values by which a fine-tune computes otherwise.

    A folder without a configuration says nothing.
    """
    mine, theirs = TextModelConfig.read(tuned), TextModelConfig.read(base)
    if mine is None or theirs is None:
        return
    keys = sorted({*mine.values, *theirs.values})
    pairs = {key: (mine.values.get(key), theirs.values.get(key)) for key in keys}
    other = [
        f"{key if key.isprintable() else ascii(key)} is {shorten(one)} and not {shorten(another)}"
        for key, (one, another) in pairs.items()
        if one != another and not _is_harmless(key, mine, theirs)
    ]
    if other:
        raise ExpertError(
            f"{tuned / CONFIG_FILE} computes otherwise than the base {base}:"
            f" {'; '.join(other[:5])}. An expert changes weights alone, and cannot change this:"
            " fine-tune with the base's own configuration, or serve this model as a base"
        )


def _is_harmless(key: str, *configs: TextModelConfig) -> bool:
    """Whether a value says nothing of the computation."""
    root = key.partition(".")[0]
    if root == "max_position_embeddings":
        # Only scaled positions are computed with it.
        kinds = (config.values.get("rope_parameters.rope_type") for config in configs)
        return all(kind in (None, "default") for kind in kinds)
    return root in _HARMLESS or root.endswith(_DROPOUT)


def _complete(
    folder: Path, content: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], frozenset[str]]:
    """Return the whole configuration, its text model's, and the keys that the model's class knows.

    A model that transformers does not know has what its file says, and no known keys.
    """
    from transformers import CONFIG_MAPPING

    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        text = content.get("text_config")
        return content, text if isinstance(text, dict) else content, frozenset()
    try:
        config = CONFIG_MAPPING[kind].from_dict(content)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExpertError(
            f"{folder / CONFIG_FILE} is no configuration of a {kind}: {reason}"
        ) from None
    text = config.get_text_config()
    known = frozenset(type(text).__dataclass_fields__) | {"model_type"}
    return config.to_dict(), text.to_dict(), known


def _parse(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ExpertError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ExpertError(f"{file} is no JSON object")
    return content


def _flatten(values: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
