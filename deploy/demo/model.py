"""The base model in transformers, and how a prompt and its answer become tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deploy.demo.base import ensure_base

END = "<|im_end|>"
_TURNS = {"user_turn": "<|im_start|>user\n", "answer": "<|im_start|>assistant\n"}
"""How the chat template opens the turns from which on an expert may act."""
EXPERTS = Path(__file__).parent / "experts"


def load_base() -> tuple[Any, Any]:
    """Return the base model in float32 and its tokeniser."""
    transformers_logging.disable_progress_bar()
    folder = ensure_base()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of the prompt as one user turn, up to where the answer starts.

    The turn is in the base's own chat template.
    """
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def encode_invocation(tokenizer: Any, acts_from: str) -> list[int] | None:
    """Return the tokens from whose last place on an expert acts (aLoRA); None for all tokens."""
    if acts_from == "start":
        return None
    return list(tokenizer(_TURNS[acts_from], add_special_tokens=False).input_ids)


def encode_answer(tokenizer: Any, answer: str) -> list[int]:
    """Return the tokens of the answer and of the end of the turn."""
    return list(tokenizer(answer + END, add_special_tokens=False).input_ids)
