"""A mix whose weights come of losses on a few wanted answers: `tta router cocktail`.

It is LM-Cocktail (Xiao et al. 2023, arXiv 2311.13534) without fine-tuning: nothing is learned, each
model is run over the examples once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.coefficient import Coefficient
from adapters.errors import MixError
from adapters.mix import MixRules
from tta_serve.offline.answered_prompts import AnsweredPrompt
from tta_serve.offline.mixed_model import MixedModel

TAU = 5.0
"""The temperature that the authors' code takes, and its examples with language models."""


@dataclass(frozen=True)
class Cocktail:
    """A mix, and what it comes of."""

    coefficients: dict[str, Coefficient]
    """By expert, on the grid; without experts that came to 0."""
    losses: dict[str, float]
    """By model, the base first, nats a token."""
    weights: dict[str, float]
    """By model likewise; their sum is 1."""


def weigh(losses: Sequence[float], tau: float) -> list[float]:
    """Return softmax(-losses / tau), the weights of LM-Cocktail.

    Args:
        losses: Of the models.
        tau: The temperature: the higher, the more equal weights are.
    """
    found: list[float] = (-torch.tensor(losses, dtype=torch.float64) / tau).softmax(0).tolist()
    return found


def make_cocktail(
    mixed: MixedModel,
    examples: Sequence[AnsweredPrompt],
    rules: MixRules,
    tau: float = TAU,
    tell: Callable[[], None] = lambda: None,
) -> Cocktail:
    """Weigh base and experts by what they lose on wanted answers, w = softmax(-loss / tau).

    The merge w_0 W + sum_k w_k (W + delta_k) of LM-Cocktail is W + sum_k w_k delta_k, as weights
    sum to 1: the base's share w_0 is what experts' coefficients leave. The base is one of the
    models that are merged, as in the authors' examples. A loss is the mean over examples of the
    mean of -log p over an answer's tokens; the authors' is the mean over batches of two of the mean
    over all of their tokens.

    Args:
        mixed: The base with the experts.
        examples: Prompts with wanted answers of the task, one or more; the paper takes five.
        rules: The grid of coefficients.
        tau: The temperature.
        tell: Is called after each example that a model has read.

    Raises:
        MixError: Every weight is so small that it is 0 on the grid.
    """
    alone = [torch.zeros(mixed.layers, len(mixed.experts))]
    alone += [mixed.isolate(k) for k in range(len(mixed.experts))]
    losses = [_average_loss(mixed, examples, coefficients, tell) for coefficients in alone]
    weights = weigh(losses, tau)
    names = [expert.name for expert in mixed.experts]
    coefficients = rules.entry(dict(zip(names, weights[1:], strict=True))).as_dict()
    if not coefficients:
        raise MixError(
            f"each of {len(names)} experts has a weight of at most {max(weights[1:]):.3g}, which is"
            f" 0 on the grid of {rules.grid:g}: name fewer experts, or a lower tau than {tau:g}"
        )
    models = ["base", *names]
    return Cocktail(
        coefficients,
        dict(zip(models, losses, strict=True)),
        dict(zip(models, weights, strict=True)),
    )


@torch.no_grad()
def _average_loss(
    mixed: MixedModel,
    examples: Sequence[AnsweredPrompt],
    coefficients: Tensor,
    tell: Callable[[], None],
) -> float:
    total = 0.0
    for example in examples:
        total += float(mixed.compute_loss(example, coefficients))
        tell()
    return total / len(examples)
