"""Checkpoints of any size, made for measuring: a Llama's random weights in bfloat16, in shards."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

VOCABULARY = 16_000
SHARDS = 4
# hidden, intermediate, layers by size in GB
SIZES = {0.1: (512, 1536, 12), 0.5: (1024, 3072, 16), 2.0: (2048, 6144, 18)}


def write_checkpoints(folder: Path, size_gb: float, count: int) -> tuple[Path, list[Path]]:
    """Write a base and `count` fine-tunes of it.

    A fine-tune is the base plus a tenth of its size in noise, a part of it common to all.

    Returns:
        The folders of the base and of the fine-tunes.
    """
    hidden, intermediate, layers = SIZES[size_gb]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    names = ["base", *(f"tuned-{k}" for k in range(count))]
    for k, name in enumerate(names):
        config.save_pretrained(folder / name)
        _save(folder / name, config, k)
    return folder / "base", [folder / name for name in names[1:]]


def _save(folder: Path, config: LlamaConfig, k: int) -> None:
    shapes = dict(_shapes(config))
    names = list(shapes)
    places = {
        name: f"model-{i * SHARDS // len(names) + 1:05d}-of-{SHARDS:05d}.safetensors"
        for i, name in enumerate(names)
    }
    for shard in sorted(set(places.values())):
        mine = [name for name in names if places[name] == shard]
        save_file(
            {name: _weight(name, shapes[name], k) for name in mine},
            folder / shard,
            {"format": "pt"},
        )
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _weight(name: str, shape: tuple[int, ...], k: int) -> Tensor:
    """Draw a weight of fine-tune k, with the same base in it for every k; 0 is the base itself."""
    draws = [
        torch.randn(shape, generator=torch.Generator().manual_seed(_seed(f"{name}/{part}")))
        for part in ("", "all", k)
    ]
    base, common, own = draws
    return (0.02 * (base + (0.07 * (common + own) if k else 0))).bfloat16()


def _seed(text: str) -> int:
    """Return a seed that is the same in every process, unlike Python's own hash."""
    return zlib.crc32(text.encode())


def _shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, inner = config.hidden_size, config.intermediate_size
    yield "model.embed_tokens.weight", (config.vocab_size, h)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            yield f"{layer}.self_attn.{name}_proj.weight", (h, h)
        yield f"{layer}.mlp.gate_proj.weight", (inner, h)
        yield f"{layer}.mlp.up_proj.weight", (inner, h)
        yield f"{layer}.mlp.down_proj.weight", (h, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (h,)
    yield "model.norm.weight", (h,)
    yield "lm_head.weight", (config.vocab_size, h)
