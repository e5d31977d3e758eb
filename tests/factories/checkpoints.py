"""Checkpoints of tiny random models."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.files.checkpoint import Checkpoint

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def make_model(
    seed: int = 0, dtype: torch.dtype = torch.float32, *, tied: bool = False, vocabulary: int = 24
) -> LlamaForCausalLM:
    """Return a random Llama of two layers."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=vocabulary, num_hidden_layers=2, tie_word_embeddings=tied, **sizes
    )
    return LlamaForCausalLM(config).to(dtype)


def save_model(model: LlamaForCausalLM, folder: Path, shard: str = "1GB") -> Checkpoint:
    """Save a model in shards of at most such a size."""
    model.save_pretrained(folder, max_shard_size=shard)
    return Checkpoint.open(folder)
