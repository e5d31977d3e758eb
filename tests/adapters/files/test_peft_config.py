"""Every option of PEFT's LoRA is decided on: honoured, harmless or refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import config as peft_lora
from peft.tuners.tuners_utils import check_target_module_exists

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.facts import CONFIG_FILE
from adapters.files.peft import load_peft
from adapters.files.peft_config import (
    HARMLESS,
    HONOURED,
    REFUSED,
    LoraSettings,
    read_settings,
)
from tests.factories.adapters import edit_config, train_adapter
from tests.factories.checkpoints import make_model, save_model

# PEFT warns of some of what these tests ask it for.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def field_names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_option_of_the_peft_that_is_installed_is_decided_on() -> None:
    """One that a new PEFT has fails here until somebody says what it does."""
    sets = [HARMLESS, HONOURED, frozenset(REFUSED)]
    assert sum(map(len, sets)) == len(frozenset().union(*sets))
    of_others = {"lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "merge_weights"}
    assert frozenset().union(*sets) == field_names(LoraConfig) | of_others


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("LoraRuntimeConfig", {"ephemeral_gpu_offload"}),
        ("LoftQConfig", {"loftq_bits", "loftq_iter"}),
        ("VeloraConfig", {"num_groups", "scale", "init_type"}),
        (
            "EvaConfig",
            {
                *{"rho", "tau", "use_label_mask", "label_mask_value", "whiten"},
                "adjust_scaling_factors",
            },
        ),
        (
            "CordaConfig",
            {
                *{"cache_file", "covariance_file", "corda_method", "verbose"},
                *{"use_float16_for_covariance", "prune_temporary_fields"},
            },
        ),
        ("LoraGAConfig", {"direction", "scale", "stable_gamma"}),
    ],
)
def test_no_nested_option_that_counts_as_harmless_is_new(kind: str, names: set[str]) -> None:
    found = getattr(peft_lora, kind)
    assert field_names(found) == names


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_tomorrows_lora", True),
        ("output_scale_config", {"scale": 2.0}),
        ("enable_lora", [True, False]),
        ("context_length", 16384),
        ("gamma", 0.5),
    ],
)
def test_an_option_that_is_on_and_unknown_is_named(
    tmp_path: Path, option: str, value: object
) -> None:
    train_adapter(tmp_path / "e", make_model())
    edit_config(tmp_path / "e", **{option: value})
    with pytest.raises(ExpertError, match=f"sets {option}, which is not known"):
        load_peft(tmp_path / "e")
    nothing: tuple[object, ...] = (None, False, {}, [], "", 0)
    for off in nothing:
        edit_config(tmp_path / "e", **{option: off})
        load_peft(tmp_path / "e")


@pytest.mark.parametrize("option", ["kasa_config", "monteclora_config", "use_bdlora"])
def test_an_empty_nested_option_is_on_as_in_peft(tmp_path: Path, option: str) -> None:
    train_adapter(tmp_path / "e", make_model())
    edit_config(tmp_path / "e", **{option: {}})
    with pytest.raises(ExpertError, match=f"{option} is set"):
        load_peft(tmp_path / "e")


@pytest.mark.parametrize(
    "config",
    [
        {"velora_config": peft_lora.VeloraConfig(num_groups=4, scale=7.0)},
        {"lora_dropout": 0.5},
        {"ensure_weight_tying": True},
        {"megatron_core": "other"},
        {"qalora_group_size": 4},
        {"eva_config": peft_lora.EvaConfig(rho=3.0)},
    ],
    ids=str,
)
def test_a_harmless_option_leaves_the_numbers(tmp_path: Path, config: dict[str, Any]) -> None:
    base = save_model(make_model(), tmp_path / "base")
    merged = train_adapter(tmp_path / "e", make_model(), **config)
    assert_equal(tmp_path / "e", base, merged)


def assert_equal(folder: Path, base: Checkpoint, merged: dict[str, torch.Tensor]) -> None:
    for module, factor in load_peft(folder, base=base).factors.items():
        value = base.read(f"{module}.weight") + factor.dense()
        torch.testing.assert_close(value, merged[f"{module}.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA', only LORA"),
        ({"peft_type": ["LORA"]}, "only LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' is answered by a head of its own"),
        ({"target_modules": None}, "has no target_modules"),
        ({"target_modules": 3}, "target_modules in adapter_config.json must be"),
        ({"alora_invocation_tokens": "judge"}, "alora_invocation_tokens in adapter_config.json"),
        ({"alora_invocation_tokens": [1, -1]}, "a list of at most 1024 tokens' numbers"),
        ({"alora_invocation_tokens": [True]}, "a list of at most 1024 tokens' numbers"),
        ({"alora_invocation_tokens": [1] * 1025}, "a list of at most 1024 tokens' numbers"),
        ({"target_modules": ["q_proj", 3]}, "target_modules in adapter_config.json must be"),
        ({"target_modules": "q_proj("}, "target_modules in adapter_config.json must be"),
        ({"exclude_modules": {"a": 1}}, "exclude_modules in adapter_config.json must be"),
        ({"modules_to_save": "lm_head"}, "modules_to_save in adapter_config.json must be"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform in adapter_config.json must be"),
        ({"use_rslora": "no"}, "use_rslora in adapter_config.json must be true or false"),
        ({"use_dora": {}}, "use_dora in adapter_config.json must be true or false"),
        ({"bias": "some"}, "bias in adapter_config.json must be one of"),
        ({"bias": None}, "bias in adapter_config.json must be one of"),
        ({"r": True}, "r in adapter_config.json must be a positive number"),
        ({"r": 2.0}, "r in adapter_config.json must be a positive number"),
        ({"lora_alpha": 10**400}, "lora_alpha in adapter_config.json must be"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern in adapter_config.json must be whole"),
        ({"exclude_modules": ["q_proj"]}, "does not target"),
        ({"layers_to_transform": [0]}, "layers.1.self_attn.q_proj.lora_A.weight is of a module"),
        ({"target_modules": "q_proj"}, "does not target"),
        ({"target_modules": "all-linear", "exclude_modules": r".*1\..*"}, "does not target"),
        ({"init_lora_weights": {"a": 1}}, "changes the base's weights"),
    ],
    ids=str,
)
def test_a_value_that_is_not_followed_is_refused(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    train_adapter(tmp_path / "e", make_model())
    edit_config(tmp_path / "e", **config)
    with pytest.raises(ExpertError) as error:
        load_peft(tmp_path / "e")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


MODULES = (
    *(f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1, 10, 11)),
    *("model.layers.1.mlp.experts.0.up_proj", "up_proj", "lm_head", "model.q_proj", "xq_proj"),
    "model.visual.blocks.1.attn.q_proj",
)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["1.self_attn.q_proj", "up_proj"]},
        {"target_modules": ["model.q_proj", "lm_head"], "exclude_modules": ["lm_head"]},
        {"target_modules": r".*\.1\..*"},
        {"target_modules": r"(?:.*?(?:visual|layers).*?(?:attn|mlp).*?(?:q_proj|up_proj).*?)|x"},
        {"target_modules": r"(?i).*Q_PROJ", "exclude_modules": r"model\.q.*"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 1]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": [1],
            "layers_pattern": ["h", "blocks"],
        },
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "l.*s"},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["self_attn", "mlp.e.*"]},
    ],
    ids=str,
)
def test_targets_are_pefts(options: dict[str, Any]) -> None:
    config, settings = LoraConfig(**options), LoraSettings("e", options)
    for module in MODULES:
        wanted = bool(check_target_module_exists(config, module))
        assert settings.targets(module) == wanted, module


def test_patterns_that_run_for_ever_are_stopped() -> None:
    settings = LoraSettings("e", {"target_modules": "(a|aa)+b"}, seconds=0.2)
    with pytest.raises(ExpertError, match="take too long to match"):
        settings.targets("a" * 80)


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    train_adapter(tmp_path / "e", make_model())
    file = tmp_path / "e" / CONFIG_FILE
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_settings(tmp_path / "e", "e").rank("any") == 2
