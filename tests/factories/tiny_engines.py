"""Tiny random bases of many architectures, and vLLM in the test's own process.

There an engine starts in a second, once another has.
"""

import atexit
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from adapters.library.library import Library
from tests.factories.engines import Engine
from tests.factories.experts import ALL_LINEAR, make_expert

FUSED_LINEAR = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # heads of 64: vLLM on CPU has no attention for small ones
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large, so that one token is clearly the most likely
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUP = 32
_ROUTED = {"num_experts_per_tok": 2, "output_router_logits": False}
BASES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama, tied embeddings": LlamaConfig(**SHAPE | {"tie_word_embeddings": True}),
    "mistral, sliding window": MistralConfig(**SHAPE, sliding_window=16),
    "qwen2, biases": Qwen2Config(**SHAPE),
    "qwen3, query and key norms": Qwen3Config(**SHAPE | {"num_key_value_heads": 2}),
    "gemma3, one layer of two sliding": Gemma3TextConfig(
        **SHAPE | {"tie_word_embeddings": True},
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=64,
    ),
    "phi3, fused in the checkpoint": Phi3Config(**SHAPE),
    "mixtral": MixtralConfig(**SHAPE, **_ROUTED, num_local_experts=4),
    "qwen3-moe, first layer dense": Qwen3MoeConfig(
        **SHAPE, **_ROUTED, num_experts=4, moe_intermediate_size=128, mlp_only_layers=[0]
    ),
}


def write_base(folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random checkpoint of this architecture.

    Its norms and biases are random too: transformers would leave them ones and zeros.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(dtype).save_pretrained(folder)
    return folder


def write_awq(folder: Path, dense: Path) -> Path:
    """Write the base in `dense` with its layers in AWQ's 4 bits.

    `dense` then holds the values that those bits stand for.
    """
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    tensors: dict[str, torch.Tensor] = {name: w.half() for name, w in model.state_dict().items()}
    for name, linear in model.model.named_modules(prefix="model"):
        if isinstance(linear, torch.nn.Linear):
            del tensors[f"{name}.weight"]
            values, zeros, scales = _four_bits(linear.weight.data.t())
            stands_for = (
                values - zeros.repeat_interleave(_GROUP, 0)
            ) * scales.float().repeat_interleave(_GROUP, 0)
            linear.weight.data.copy_(stands_for.t())
            packed = {"qweight": _packed(values), "qzeros": _packed(zeros), "scales": scales}
            tensors |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
    model.save_pretrained(dense)
    model.config.quantization_config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": _GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }
    model.config.save_pretrained(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def _four_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return values and zero points in 0 .. 15, and scales, of each group of inputs.

    Args:
        weight: [in, out].
    """
    groups = weight.reshape(-1, _GROUP, weight.shape[1])
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15).int()
    values = (groups / scales.float().unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15).int()
    return values.reshape(weight.shape), zeros, scales


def _packed(values: torch.Tensor) -> torch.Tensor:
    """Pack eight 4-bit values to an int32, in AWQ's order."""
    eights = values.long().reshape(values.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
    words = (eights << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def write_library(root: Path, base: Path) -> Library:
    """Write three experts about as strong as the base itself, of different ranks and scales.

    The last is on a few modules only.
    """
    two = range(2)
    linear = (*ALL_LINEAR, *FUSED_LINEAR)  # each base has its own of these
    make_expert(
        root / "small", base, seed=1, rank=4, alpha=4, layers=two, modules=linear, strength=5
    )
    make_expert(
        root / "rslora",
        base,
        seed=2,
        rank=16,
        alpha=8,
        use_rslora=True,
        layers=two,
        modules=linear,
        strength=5,
    )
    few = ("self_attn.v_proj", "self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj")
    make_expert(
        root / "few", base, seed=3, layers=two, modules=few, ranks={"o_proj": 2}, strength=5
    )
    return Library.open(root)


def prompts(lengths: Sequence[int] = (3, 9, 24, 40, 17)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(3, SHAPE["vocab_size"], (n,), generator=generator).tolist() for n in lengths
    ]


@contextmanager
def tiny_engine(base: Path, library: Library, **settings: Any) -> Iterator[Engine]:
    """Start an engine in this process, and nothing else.

    What vLLM leaves behind in the process is undone at the end.
    """
    from vllm import envs
    from vllm.distributed import cleanup_dist_env_and_memory

    here = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    small: dict[str, Any] = {
        "max_model_len": 256,
        "skip_tokenizer_init": True,
        "kv_cache_memory_bytes": 32 * 1024**2,
    }
    with (
        patch.dict(os.environ, here),
        patch.object(torch, "set_num_threads", torch.set_num_threads),
        patch(
            "vllm.model_executor.models.registry._run_in_subprocess",
            lambda look_at_model: look_at_model(),
        ),
        collect_garbage_once(),
    ):
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it goes before kv_cache_memory_bytes
        envs.disable_envs_cache()
        try:
            engine = Engine(base, library, tap_layer=1, **small | settings)
            yield engine
            engine.close()
        finally:
            cleanup_dist_env_and_memory()


@contextmanager
def collect_garbage_once() -> Iterator[None]:
    """Collect garbage at the end alone, and not among the modules of vLLM and torch.

    vLLM collects eight times an engine, which takes longer than all else that a tiny one does. The
    interpreter collects by itself no more: what an earlier engine left must not end while torch
    compiles a model, for its kernels' destructors would be traced.
    """
    _freeze_modules()
    gc.disable()
    try:
        with (
            patch.object(gc, "collect", lambda *_: 0),
            patch.object(gc, "freeze", lambda: None),
            patch.object(gc, "unfreeze", lambda: None),
        ):
            yield
    finally:
        gc.enable()
        gc.collect()


@cache
def _freeze_modules() -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)


@contextmanager
def compiling_with_lora() -> Iterator[list[Any]]:
    """Let vLLM compile on CPU though LoRA is on, as it does on GPUs.

    Yields the configurations that engines then have.
    """
    from vllm.platforms.cpu import CpuPlatform

    check, seen = CpuPlatform.check_and_update_config, []

    def check_without_lora(config: Any) -> None:
        lora, config.lora_config = config.lora_config, None
        check(config)
        config.lora_config = lora
        seen.append(config)

    with patch.object(CpuPlatform, "check_and_update_config", staticmethod(check_without_lora)):
        yield seen
