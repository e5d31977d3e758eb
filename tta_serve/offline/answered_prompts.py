"""Prompts with answers: an expert's own, or those that somebody wants."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tta_serve.offline.base_model import MAX_TOKENS, PlainModel
from tta_serve.offline.features import tokenize


class AnsweredPrompt(NamedTuple):
    """A prompt and an answer, with all of its tokens."""

    ids: Tensor
    """[1, tokens], of the prompt and of the answer without its last token."""
    wanted: Tensor
    """[answer], the answer's tokens."""


@torch.no_grad()
def answer_greedily(plain: PlainModel, prompt: str, most: int) -> AnsweredPrompt:
    """Return a prompt with the greedy answer of the model as it is now.

    The prompt is in the chat template if the base has one.

    Args:
        plain: The base, changed by an expert meanwhile.
        prompt: The user's words.
        most: How many tokens the answer has at most.
    """
    ids = token = _ask(plain, prompt)
    start = ids.shape[1]
    cache = None
    ends = _list_ends(plain.model)
    for _ in range(most):
        output = plain.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        cache = output.past_key_values
        ids = torch.cat([ids, token], 1)
        if int(token) in ends:
            break
    return AnsweredPrompt(ids[:, :-1], ids[0, start:])


def append_answer(plain: PlainModel, prompt: str, want: str) -> AnsweredPrompt:
    """Return a prompt with a wanted answer and the token that ends it, if the base has one.

    The prompt is in the chat template if the base has one. Of a longer answer the first 512 tokens
    are taken.

    Args:
        plain: The base.
        prompt: The user's words.
        want: The answer's words.
    """
    asked = _ask(plain, prompt)
    answer: list[int] = plain.tokenizer.encode(want, add_special_tokens=False)
    wanted = torch.tensor([*answer, *_choose_end(plain)][:MAX_TOKENS])
    return AnsweredPrompt(torch.cat([asked, wanted[None, :-1]], 1), wanted)


def _ask(plain: PlainModel, prompt: str) -> Tensor:
    return tokenize(plain, prompt, chat=plain.tokenizer.chat_template is not None)


def _choose_end(plain: PlainModel) -> list[int]:
    """Return the token that ends an answer; the tokenizer's own where a model has several."""
    ends = _list_ends(plain.model)
    own = plain.tokenizer.eos_token_id
    return [own] if own is not None else sorted(ends)[:1]


def _list_ends(model: Any) -> set[int]:
    """Return the tokens that end an answer."""
    end = model.generation_config.eos_token_id
    if end is None:
        return set()
    return set(end) if isinstance(end, list) else {end}
