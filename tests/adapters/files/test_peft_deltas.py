"""What adapters change of a base: the same numbers as PEFT's merge_and_unload."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.deltas import Deltas, LowRankDeltas
from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.facts import WEIGHTS_FILE
from adapters.files.peft import load_peft, open_adapter, write_peft
from tests.factories.adapters import Weights, edit_config, train_adapter
from tests.factories.checkpoints import make_model, save_model

# PEFT warns of some of what these tests ask it for.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_model(make_model(), tmp_path_factory.mktemp("base"))


def make_biased() -> LlamaForCausalLM:
    """Return a random Llama whose attention has biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True))


def assert_merges(deltas: Deltas, base: Checkpoint, merged: Weights) -> None:
    """Base plus deltas is what PEFT has merged, and no other weight differs."""
    for weight, wanted in merged.items():
        value = base.read(weight).float()
        if weight in deltas.shapes:
            change = deltas.delta(weight)
            assert change.shape == deltas.shapes[weight]
            value += change
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=weight)
    assert deltas.shapes.keys() <= merged.keys()


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"], "use_rslora": True},
        {"target_modules": ["embed_tokens", "lm_head", "up_proj"], "rank_pattern": {"lm_head": 3}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(?:q|v)_proj", "exclude_modules": r".*layers\.0\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"rank_pattern": {r"^model\.layers\.(?:0)\.self_attn\.q_proj": 3}},
        {"alpha_pattern": {"0.self_attn.q_proj": 1, "q_proj": 9}},
    ],
    ids=str,
)
def test_a_plain_lora_is_pefts_merge_and_comes_back(
    tmp_path: Path, base: Checkpoint, config: dict[str, Any]
) -> None:
    merged = train_adapter(tmp_path / "e", make_model(), **config)
    deltas = open_adapter(tmp_path / "e", base)
    assert isinstance(deltas, LowRankDeltas)
    assert_merges(deltas, base, merged)

    write_peft(deltas.expert, tmp_path / "w", "base")
    loaded: Any = PeftModel.from_pretrained(make_model(), str(tmp_path / "w"))
    again = loaded.merge_and_unload().state_dict()
    for weight, wanted in merged.items():
        torch.testing.assert_close(again[weight], wanted, rtol=1e-5, atol=1e-6)
    assert load_peft(tmp_path / "w", base=base).digest == deltas.expert.digest


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True, "target_modules": ["q_proj", "down_proj", "lm_head"]},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"0.self_attn.q_proj": 3}},
        {"use_dora": True, "target_modules": ["embed_tokens"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["1.mlp", "norm"], "target_modules": ["q_proj", "up_proj"]},
        {"use_dora": True, "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_what_is_more_than_factors_is_pefts_merge(
    tmp_path: Path, base: Checkpoint, config: dict[str, Any]
) -> None:
    merged = train_adapter(tmp_path / "e", make_model(), **config)
    deltas = open_adapter(tmp_path / "e", base)
    assert_merges(deltas, base, merged)
    with pytest.raises(ExpertError, match="tta experts add FOLDER --name NAME --rank R"):
        load_peft(tmp_path / "e")


@pytest.mark.parametrize(
    "config",
    [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True, "use_rslora": True}],
    ids=str,
)
def test_biases_are_pefts_merge(tmp_path: Path, config: dict[str, Any]) -> None:
    base = save_model(make_biased(), tmp_path / "base")
    config = {"target_modules": ["q_proj", "o_proj"], **config}
    merged = train_adapter(tmp_path / "e", make_biased(), **config)
    deltas = open_adapter(tmp_path / "e", base)
    assert_merges(deltas, base, merged)
    assert "model.layers.0.self_attn.q_proj.bias" in deltas.shapes


def test_a_16_bit_base_is_converted_as_peft_does(tmp_path: Path) -> None:
    model = make_model(dtype=torch.bfloat16)
    base = save_model(model, tmp_path / "base")
    train_adapter(tmp_path / "e", make_model(dtype=torch.bfloat16), use_dora=True)
    exact = make_model(dtype=torch.bfloat16).float()
    merged: Any = PeftModel.from_pretrained(exact, str(tmp_path / "e"))
    assert_merges(open_adapter(tmp_path / "e", base), base, merged.merge_and_unload().state_dict())


def test_a_magnitude_and_its_option_come_together(tmp_path: Path, base: Checkpoint) -> None:
    train_adapter(tmp_path / "e", make_model(), use_dora=True)
    edit_config(tmp_path / "e", use_dora=False)
    with pytest.raises(ExpertError, match="lora_magnitude_vector, and use_dora is False"):
        open_adapter(tmp_path / "e", base)
    train_adapter(tmp_path / "f", make_model())
    edit_config(tmp_path / "f", use_dora=True)
    with pytest.raises(ExpertError, match="no lora_magnitude_vector, but use_dora is True"):
        open_adapter(tmp_path / "f", base)


def test_a_head_that_was_trained_before_the_lora_is_part_of_the_change(
    tmp_path: Path, base: Checkpoint
) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    merged = train_adapter(tmp_path / "e", model, target_modules=["lm_head"])
    assert_merges(open_adapter(tmp_path / "e", base), base, merged)


def test_whole_modules_of_a_tied_base_are_refused(tmp_path: Path) -> None:
    base = save_model(make_model(tied=True), tmp_path / "base")
    train_adapter(tmp_path / "e", make_model(tied=True), modules_to_save=["embed_tokens"])
    with pytest.raises(ExpertError, match="in which the two are one"):
        open_adapter(tmp_path / "e", base)


def test_a_resized_vocabulary_is_refused_by_shape(tmp_path: Path, base: Checkpoint) -> None:
    model = make_model()
    model.resize_token_embeddings(26)
    train_adapter(tmp_path / "e", model, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(ExpertError, match=r"\(26, 16\).*\(24, 16\)"):
        open_adapter(tmp_path / "e", base)


def test_dora_needs_the_values_of_its_base(tmp_path: Path) -> None:
    checkpoint = save_model(make_model(), tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    packed = {
        name: value if "_proj" not in name else value.to(torch.float8_e4m3fn)
        for name, value in tensors.items()
    }
    save_file(packed, checkpoint.folder / "model.safetensors")
    train_adapter(tmp_path / "e", make_model(), use_dora=True)
    with pytest.raises(ExpertError, match="is quantised"):
        open_adapter(tmp_path / "e", Checkpoint.open(tmp_path / "base"))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("base_model.model.lm_head.weight", "lm_head.weight is not a LoRA factor"),
        ("base_model.model.model.norm.bias", "norm.bias is not a LoRA factor"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "does not target"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_E", "lora_E is not a LoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "lora_bias is off"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "delta is"),
        ("lora_te_text_model.lora_up.weight", "lora_up.weight is not a LoRA factor"),
        ("", "tensor  is not a LoRA factor"),
    ],
)
def test_a_tensor_that_is_not_used_is_named(
    tmp_path: Path, base: Checkpoint, key: str, says: str
) -> None:
    train_adapter(tmp_path / "e", make_model())
    file = tmp_path / "e" / WEIGHTS_FILE
    save_file(load_file(file) | {key: torch.ones(16)}, file)
    for known in (base, None):
        with pytest.raises(ExpertError) as error:
            load_peft(tmp_path / "e", base=known)
        assert says in str(error.value)
