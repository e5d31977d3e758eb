"""Experts made for a test: random LoRA folders in PEFT's own format."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ALL_LINEAR = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def weight_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear weight of a Llama-like layer."""
    c = AutoConfig.from_pretrained(base)
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    q, kv, h, m = c.num_attention_heads * head, c.num_key_value_heads * head, c.hidden_size, c.intermediate_size
    return dict(zip(ALL_LINEAR, [(q, h), (kv, h), (kv, h), (h, q), (m, h), (m, h), (h, m)], strict=True))


def make_expert(  # noqa: PLR0913 - one knob each
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 8,
    alpha: float = 16,
    layers: range = range(6, 30),
    modules: tuple[str, ...] = ALL_LINEAR,
    ranks: dict[str, int] | None = None,
    strength: float = 0.5,
    **config: Any,
) -> Path:
    """A LoRA whose delta is about `strength` / 10 of a random weight's size; `ranks` by module becomes a rank_pattern."""
    shapes, g = weight_shapes(base), torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        for module in modules:
            out, in_ = shapes[module]
            r = (ranks or {}).get(module.split(".")[1], rank)
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(r, in_, generator=g) / in_**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, r, generator=g) * strength * 0.05
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "made",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({m.split(".")[1] for m in modules}),
        "layers_to_transform": list(layers),
        "rank_pattern": ranks or {},
        "bias": "none",
        "inference_mode": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
