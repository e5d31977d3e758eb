"""Shares for each layer, learned on wanted answers: `tta router learn --loss references`.

It is CAT, the learned concatenation of LoRA Soups (Prabhakar et al. 2024, arXiv 2410.13025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from adapters.mix import MixRules
from tta_serve.offline.answered_prompts import AnsweredPrompt
from tta_serve.offline.learn_entry import LearnedEntry, put_on_grid
from tta_serve.offline.mixed_model import MixedModel
from tta_serve.offline.optimise import compute_mean_loss, descend


@dataclass(frozen=True)
class ShareSettings:
    """How to learn."""

    steps: int = 60
    """Each takes the next example of every group."""
    rate: float = 0.03
    """Of Adam at first; it falls to 0."""
    per_layer: bool = True
    """Whether each layer has shares of its own."""


def learn_shares(
    mixed: MixedModel,
    examples: Sequence[Sequence[AnsweredPrompt]],
    rules: MixRules,
    settings: ShareSettings,
    tell: Callable[[float], None] = lambda loss: None,
) -> LearnedEntry:
    """Learn the coefficients c[l] = softmax(theta[l]) of an entry, by Adam from equal shares.

    It minimises the mean over groups of -log p of their wanted answers, nats a token. The paper has
    free scalars for each expert and layer; its code takes their softmax, as here, so that the
    coefficients of a layer sum to 1. There each weight of a layer has its own, here all weights of
    a layer share them, as everywhere in this server. They are put on the grid of `rules` at the
    end.

    Args:
        mixed: The base with the experts.
        examples: Prompts with wanted answers, in groups such as one for each task.
        rules: The grid of coefficients.
        settings: How to learn.
        tell: Is called after each step with its loss.
    """
    rows = mixed.layers if settings.per_layer else 1
    theta = torch.zeros(rows, len(mixed.experts), requires_grad=True)

    def lose(coefficients: Tensor, group: int, number: int) -> Tensor:
        every = coefficients.expand(mixed.layers, -1)
        return mixed.compute_loss(examples[group][number], every)

    def lose_now(group: int, number: int) -> Tensor:
        return lose(theta.softmax(-1), group, number)

    before = compute_mean_loss(lose_now, examples)
    descend([theta], lose_now, examples, settings.steps, settings.rate, tell)
    coefficients, on_grid = put_on_grid(mixed, rules, theta.detach().softmax(-1))
    return LearnedEntry(coefficients, before, compute_mean_loss(partial(lose, on_grid), examples))
