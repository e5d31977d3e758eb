"""The base in plain transformers, changed by experts, over example prompts.

It measures what a form of an expert loses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.deltas import Deltas
from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint

MAX_PROMPTS = 256
"""So many prompts are used at most."""
MAX_TOKENS = 512
"""So many tokens of a prompt are used at most."""
_MOST_LOGPROBS = 1 << 27  # so many are held at once: 512 MiB


@dataclass(frozen=True)
class PlainModel:
    """The base's model, float32, and its tokenizer."""

    base: Checkpoint
    """The folder that both come from."""
    model: Any
    """A causal language model of transformers."""
    tokenizer: Any
    """A tokenizer of transformers."""

    @classmethod
    def load(cls, base: Checkpoint) -> PlainModel:
        """Load model and tokenizer of a base.

        Raises:
            ExpertError: transformers cannot load them.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = str(base.folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            ).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ExpertError(
                f"{folder} has weights, but transformers cannot load model and tokenizer: {error}"
            ) from None
        return cls(base, model, tokenizer)

    def tokenize(self, prompts: Sequence[str]) -> list[Tensor]:
        """Return the tokens of some prompts, each [1, tokens].

        At most 256 prompts are taken, each cut to 512 tokens; those of fewer than two tokens are
        left out.
        """
        found = [
            self.tokenizer(prompt, return_tensors="pt").input_ids[:, :MAX_TOKENS]
            for prompt in prompts[:MAX_PROMPTS]
        ]
        return [ids for ids in found if ids.shape[1] > 1]

    @contextmanager
    def apply(self, deltas: Deltas | None) -> Iterator[None]:
        """Make the model base + deltas meanwhile.

        Afterwards its weights are the base's again, by copy.
        """
        weights = dict(deltas.shapes) if deltas else {}
        try:
            for weight in weights:
                assert deltas is not None
                self.find_parameter(weight).data.add_(deltas.delta(weight))
            yield
        finally:
            for weight in weights:
                self.find_parameter(weight).data.copy_(self.base.read(weight))

    def find_parameter(self, weight: str) -> torch.nn.Parameter:
        """Return a weight of the model.

        Raises:
            ExpertError: It is not called so there.
        """
        try:
            found: torch.nn.Parameter = self.model.get_parameter(weight)
        except AttributeError:
            raise ExpertError(
                f"{weight} of {self.base.folder} has another name in transformers' model"
            ) from None
        return found

    @torch.no_grad()
    def compute_logprobs(self, tokens: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield log p(. | x_<t) of each prompt, [tokens - 1, vocabulary].

        That is at every position but the last.
        """
        for ids in tokens:
            yield self.model(ids).logits[0, :-1].log_softmax(-1)


def measure_change(
    plain: PlainModel, before: Deltas, after: Deltas, prompts: Sequence[str]
) -> dict[str, float]:
    """Return how far base + after is from base + before, in next-token log-probabilities.

    logprob_change_mean and logprob_change_max are of |log p_after(x_t | x_<t) - log p_before(x_t |
    x_<t)|, nats; kl_mean is KL(p_before || p_after), nats, the mean over positions; tokens is the
    number of positions. Empty where no prompt has two tokens.

    Args:
        plain: The base.
        before: What is added to it to compare with.
        after: What is added to it instead.
        prompts: Over whose tokens to measure.
    """
    tokens = plain.tokenize(prompts)
    if not tokens:
        return {}

    shift: list[Tensor] = []
    kl: list[Tensor] = []
    for group in _groups(tokens, _MOST_LOGPROBS // plain.model.config.get_text_config().vocab_size):
        with plain.apply(before):
            wanted = list(plain.compute_logprobs(group))
        with plain.apply(after):
            for ids, p, q in zip(group, wanted, plain.compute_logprobs(group), strict=True):
                following = ids[0, 1:, None]
                shift.append((q.gather(1, following) - p.gather(1, following)).abs().flatten())
                kl.append((p.double().exp() * (p.double() - q)).sum(1))

    shifts = torch.cat(shift)
    return {
        "logprob_change_mean": float(shifts.mean()),
        "logprob_change_max": float(shifts.max()),
        "kl_mean": float(torch.cat(kl).mean()),
        "tokens": float(len(shifts)),
    }


def _groups(tokens: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Yield prompts in order, at most so many tokens together unless one alone has more."""
    group: list[Tensor] = []
    for ids in tokens:
        if group and sum(other.shape[1] for other in group) + ids.shape[1] > most:
            yield group
            group = []
        group.append(ids)
    yield group
