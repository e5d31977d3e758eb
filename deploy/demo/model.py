"""The base model in transformers: loading it, and how a prompt and its answer become tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deploy.demo.base import ensure_base

END = "<|im_end|>"
EXPERTS = Path(__file__).parent / "experts"


def load_base() -> tuple[Any, Any]:
    """The base model in float32 and its tokeniser."""
    transformers_logging.disable_progress_bar()
    folder = ensure_base()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as one user turn of the base's own chat template, up to where the answer starts."""
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def answer_tokens(tokenizer: Any, answer: str) -> list[int]:
    """The answer and the end of the turn."""
    return list(tokenizer(answer + END, add_special_tokens=False).input_ids)
