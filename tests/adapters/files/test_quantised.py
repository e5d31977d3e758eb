"""Quantised bases: the shapes of weights that are packed come from the configuration."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.peft import load_peft
from tests.factories.adapters import train_adapter
from tests.factories.checkpoints import SINGLE, make_model, save_model

Tensors = dict[str, Tensor]


def codes(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def bitsandbytes_4bit(module: str, w: Tensor) -> Tensors:
    return {
        f"{module}.weight": codes(w.numel() // 2, 1),
        f"{module}.weight.absmax": codes(w.numel() // 64 + 1),
        f"{module}.weight.quant_state.bitsandbytes__nf4": codes(80),
    }


def bitsandbytes_8bit(module: str, w: Tensor) -> Tensors:
    return {f"{module}.weight": codes(*w.shape, dtype=torch.int8), f"{module}.SCB": w[:, 0].clone()}


def gptq(module: str, w: Tensor) -> Tensors:
    return {
        f"{module}.qweight": codes(w.shape[1] // 8, w.shape[0], dtype=torch.int32),
        f"{module}.qzeros": codes(1, w.shape[0] // 8, dtype=torch.int32),
        f"{module}.scales": w[:, :1].t().half().contiguous(),
        f"{module}.g_idx": codes(w.shape[1], dtype=torch.int32),
        f"{module}.bias": w[:, 0].half().clone(),
    }


def awq(module: str, w: Tensor) -> Tensors:
    return {
        f"{module}.qweight": codes(w.shape[1], w.shape[0] // 8, dtype=torch.int32),
        f"{module}.qzeros": codes(1, w.shape[0] // 8, dtype=torch.int32),
        f"{module}.scales": w[:, :1].t().half().contiguous(),
    }


def compressed_tensors(module: str, w: Tensor) -> Tensors:
    return {
        f"{module}.weight_packed": codes(w.shape[0], w.shape[1] // 8, dtype=torch.int32),
        f"{module}.weight_scale": w[:, :1].bfloat16(),
        f"{module}.weight_shape": torch.tensor(w.shape),
    }


def fp8(module: str, w: Tensor) -> Tensors:
    scale = {f"{module}.weight_scale": torch.ones(1)}
    return {f"{module}.weight": w.to(torch.float8_e4m3fn), **scale}


def mxfp(module: str, w: Tensor) -> Tensors:
    return {
        f"{module}.weight_packed": codes(w.shape[0], w.shape[1] // 2),
        f"{module}.weight_scale": torch.ones(w.shape[0], 1).to(torch.float8_e8m0fnu),
    }


KINDS = (bitsandbytes_4bit, bitsandbytes_8bit, gptq, awq, compressed_tensors, fp8, mxfp)


def quantise(folder: Path, pack: Callable[[str, Tensor], Tensors], prefix: str = "") -> Checkpoint:
    """Save a base whose linear layers are packed."""
    save_model(make_model(), folder)
    packed: Tensors = {}
    for name, value in load_file(folder / SINGLE).items():
        module, _, _ = (prefix + name).rpartition(".")
        is_linear = name.endswith("_proj.weight")
        packed |= pack(module, value) if is_linear else {prefix + name: value}
    save_file(packed, folder / SINGLE)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("pack", KINDS, ids=lambda pack: pack.__name__)
@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_a_lora_of_a_quantised_base_fits_it(
    tmp_path: Path, pack: Callable[[str, Tensor], Tensors], prefix: str
) -> None:
    base = quantise(tmp_path / "base", pack, prefix)
    for name, value in make_model().state_dict().items():
        assert base.real_shapes[prefix + name] == tuple(value.shape), name
    train_adapter(tmp_path / "e", make_model(), target_modules=["q_proj", "down_proj"])
    factors = load_peft(tmp_path / "e", base=base).factors
    assert f"{prefix}model.layers.0.self_attn.q_proj" in factors
    assert len(factors) == 4


def test_a_lora_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = quantise(tmp_path / "base", gptq)
    train_adapter(tmp_path / "e", make_model(), target_modules=["k_proj"])
    tensors = load_file(tmp_path / "e" / "adapter_model.safetensors")
    wide = {key: value.repeat(2, 1) if "B" in key else value for key, value in tensors.items()}
    save_file(wide, tmp_path / "e" / "adapter_model.safetensors")
    with pytest.raises(ExpertError, match=r"as \(16, 16\); the base .* as \(8, 16\)"):
        load_peft(tmp_path / "e", base=base)


@pytest.mark.parametrize(
    "config",
    [None, "{", "[]", "{}", json.dumps({"model_type": "of tomorrow"}), '{"model_type": "llama"'],
)
def test_a_quantised_base_whose_configuration_does_not_tell_is_said(
    tmp_path: Path, config: str | None
) -> None:
    base = quantise(tmp_path / "base", gptq)
    (tmp_path / "base" / "config.json").unlink()
    if config is not None:
        (tmp_path / "base" / "config.json").write_text(config, encoding="utf-8")
    train_adapter(tmp_path / "e", make_model())
    with pytest.raises(ExpertError, match=r"is quantised .* use a PEFT folder") as error:
        load_peft(tmp_path / "e", base=base)
    assert "\n" not in str(error.value)


def test_code_beside_a_configuration_is_not_run(tmp_path: Path) -> None:
    base = quantise(tmp_path / "base", gptq)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "base" / "evil.py").write_text(code, encoding="utf-8")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = {"model_type": "evil", "auto_map": auto, "architectures": ["Evil"]}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    train_adapter(tmp_path / "e", make_model())
    with pytest.raises(ExpertError, match="is quantised"):
        load_peft(tmp_path / "e", base=base)
    assert not (tmp_path / "ran").exists()


def test_a_base_of_floats_and_buffers_needs_no_configuration(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    (tmp_path / "config.json").unlink()
    tensors = load_file(tmp_path / SINGLE)
    buffers = {"model.positions": torch.arange(4), "model.mask": torch.ones(2, dtype=torch.bool)}
    save_file(tensors | buffers, tmp_path / SINGLE)
    base = Checkpoint.open(tmp_path)
    assert base.real_shapes == base.shapes
