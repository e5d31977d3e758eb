"""Experts made for a test: random LoRA folders in PEFT's own format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adapters.bank.layer_gates import Gates, LayerGate
from adapters.expert import Expert, LowRank
from adapters.files.peft import write_peft
from adapters.low_rank import make_canonical

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ALL_LINEAR = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ENDS = ("model.embed_tokens", "lm_head")


LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def make_plain_base(folder: Path, seed: int) -> Path:
    """Save a tiny random base, without a tokenizer."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LLAMA).save_pretrained(folder)
    return folder


def linear_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear layer of a base by name, without reading weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    return {
        n: (m.out_features, m.in_features)
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
    }


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
    """Write a LoRA whose delta is about `strength` / 10 of a random weight's size.

    Of `modules`, each layer gets those that it has: in a mixture of experts some layers have no
    plain MLP. `ranks` by module becomes a rank_pattern.
    """
    shapes, g = linear_shapes(base), torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        for module in modules:
            name = f"model.layers.{layer}.{module}"
            if name not in shapes:
                continue
            out, in_ = shapes[name]
            r = (ranks or {}).get(module.split(".")[1], rank)
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(r, in_, generator=g) / in_**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, r, generator=g) * strength * 0.05
    leaves = sorted({m.split(".")[1] for m in modules})
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": leaves,
        "layers_to_transform": list(layers),
        **config,
    }
    return write_adapter(folder, tensors, rank_pattern=ranks or {}, **settings)


def make_end_expert(  # noqa: PLR0913 - one knob each
    folder: Path,
    base: Path,
    *,
    seed: int,
    modules: Sequence[str] = ENDS,
    rank: int = 8,
    strength: float = 5,
) -> Path:
    """Write a LoRA of modules of a base by their whole names, as strong as `make_expert` does."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    g = torch.Generator().manual_seed(seed)
    factors = {}
    for module in modules:
        out, in_ = model.get_submodule(module).weight.shape
        a = torch.randn(rank, in_, generator=g) / in_**0.5
        factors[module] = LowRank(a, torch.randn(out, rank, generator=g) * strength * 0.05)
    write_peft(Expert(folder.name, factors), folder, "made")
    return folder


def make_narrow_expert(folder: Path, module: str, shape: tuple[int, int]) -> Path:
    """Write a LoRA of one module, whether or not the base has it as a linear layer."""
    prefix = f"base_model.model.{module}"
    tensors = {
        f"{prefix}.lora_A.weight": torch.ones(1, shape[1]),
        f"{prefix}.lora_B.weight": torch.ones(shape[0], 1),
    }
    return write_adapter(
        folder, tensors, r=1, lora_alpha=1, target_modules=[module.rpartition(".")[2]]
    )


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Write tensors as PEFT saves a LoRA."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "made"}
    settings = {**fixed, "bias": "none", "inference_mode": True, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def make_gate(factor: LowRank, g: torch.Generator) -> LayerGate:
    """Return a random gate of one weight."""
    return LayerGate(
        torch.rand(make_canonical(factor).rank, generator=g) * 4, float(torch.randn(1, generator=g))
    )


def make_gates(experts: Mapping[str, Expert], *, without: str = "", seed: int = 5) -> Gates:
    """Return random gates of all experts but one."""
    g = torch.Generator().manual_seed(seed)
    return {
        expert.digest: {module: make_gate(factor, g) for module, factor in expert.factors.items()}
        for name, expert in experts.items()
        if name != without
    }
