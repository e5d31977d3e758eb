"""Configurations: what a fine-tune computes otherwise is refused, what it does not is let be."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma3Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from adapters.errors import ExpertError
from adapters.files.model_config import TextModelConfig, check_same_computation

GONE = object()
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
FAR = {"rope_type": "default", "rope_theta": 1e6}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def save(folder: Path, config: PretrainedConfig, **changes: Any) -> Path:
    """Save a configuration, with values of its file changed or gone."""
    config.save_pretrained(folder)
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    content = {key: value for key, value in content.items() if value is not GONE}
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        (LlamaConfig, {"rope_parameters": FAR}, "rope_theta is 1000000.0 and not 10000.0"),
        (LlamaConfig, {"rope_parameters": GONE, "rope_theta": 1e6}, "rope_theta is 1000000.0"),
        (LlamaConfig, {"rope_parameters": SCALED}, "rope_parameters.factor"),
        (LlamaConfig, {"rope_scaling": {"type": "linear", "factor": 4.0}}, "factor"),
        (LlamaConfig, {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 and not 1e-06"),
        (LlamaConfig, {"hidden_act": "gelu"}, "hidden_act"),
        (LlamaConfig, {"num_attention_heads": 16}, "num_attention_heads"),
        (LlamaConfig, {"num_hidden_layers": 3}, "num_hidden_layers"),
        (LlamaConfig, {"attention_bias": True}, "attention_bias"),
        (LlamaConfig, {"model_type": "mistral"}, "model_type"),
        (Qwen2Config, {"use_sliding_window": True}, "use_sliding_window"),
        (MixtralConfig, {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        (MixtralConfig, {"sliding_window": 16}, "sliding_window is 16 and not None"),
        (Gemma3Config, {"text_config": {"query_pre_attn_scalar": 64}}, "query_pre_attn_scalar"),
    ],
)
def test_a_fine_tune_that_computes_otherwise_is_refused_by_the_value(
    tmp_path: Path, kind: type[PretrainedConfig], changes: dict[str, Any], says: str
) -> None:
    base, tuned = save(tmp_path / "base", kind()), save(tmp_path / "tuned", kind(), **changes)
    with pytest.raises(ExpertError, match="computes otherwise than the base") as error:
        check_same_computation(tuned, base)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": GONE, "rope_theta": 1e4},
        {"dtype": "bfloat16", "transformers_version": "4.30.0", "use_cache": False},
        {"torch_dtype": "float16", "eos_token_id": [2, 3], "pad_token_id": 7},
        {"attention_dropout": 0.1, "initializer_range": 0.5, "pretraining_tp": 2},
        {"max_position_embeddings": 8192},
        {"my_own_note": "ours", "unsloth_version": "2026.1"},
        {"_name_or_path": "somewhere/else", "architectures": ["LlamaForSequenceClassification"]},
        {"vocab_size": 32002, "tie_word_embeddings": True},
        {"num_key_value_heads": 32, "head_dim": 128},
    ],
)
def test_what_changes_no_computation_is_let_be(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = save(tmp_path / "base", LlamaConfig())
    check_same_computation(save(tmp_path / "tuned", LlamaConfig(), **changes), base)


def test_positions_that_are_scaled_by_the_longest_are_computed_with_it(tmp_path: Path) -> None:
    base = save(tmp_path / "base", LlamaConfig(rope_parameters=DYNAMIC))
    longer = LlamaConfig(rope_parameters=DYNAMIC, max_position_embeddings=8192)
    with pytest.raises(ExpertError, match="max_position_embeddings is 8192 and not 2048"):
        check_same_computation(save(tmp_path / "tuned", longer), base)


def test_of_a_model_that_transformers_does_not_know_every_value_counts(tmp_path: Path) -> None:
    own = {"model_type": "our_own", "some_scale": 2.0}
    base = save(tmp_path / "base", LlamaConfig(), **own)
    same = save(tmp_path / "same", LlamaConfig(), **own, use_cache=False)
    check_same_computation(same, base)
    other = save(tmp_path / "other", LlamaConfig(), **own | {"some_scale": 3.0})
    with pytest.raises(ExpertError, match=r"some_scale is 3\.0 and not 2\.0"):
        check_same_computation(other, base)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b'{"model_type": "llama", "num_hidden_layers": "x"}']
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ExpertError, match=r"config\.json"):
        TextModelConfig.read(tmp_path)


def test_a_folder_without_one_says_nothing(tmp_path: Path) -> None:
    assert TextModelConfig.read(tmp_path) is None
    check_same_computation(tmp_path, save(tmp_path / "base", LlamaConfig()))


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    file = save(tmp_path, LlamaConfig()) / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    config = TextModelConfig.read(tmp_path)
    assert config is not None
    assert (config.layers, config.tied) == (32, False)
