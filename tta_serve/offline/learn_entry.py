"""Coefficients for each layer, learned on a few prompts of every expert: `tta router learn`.

It needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from adapters.coefficient import Coefficient
from adapters.mix import MixRules
from tta_serve.offline.mixed_model import AnswerOutputs, MixedModel, Sample
from tta_serve.offline.optimise import Samples, compute_mean_loss, descend

TEMPERATURE = 3.0
"""T of `alignment_loss`."""
STATES_WEIGHT = 0.1
"""The weight of the states in `alignment_loss`."""

Loss = Literal["alignment", "entropy"]
INITIAL: dict[Loss, float] = {"alignment": 0.1, "entropy": 0.3}
"""What every coefficient is at first, as the loss's paper has it."""


@dataclass(frozen=True)
class LearnSettings:
    """How to learn."""

    loss: Loss = "alignment"
    """What is minimised: `alignment_loss` or `entropy_loss`."""
    steps: int = 60
    """Each takes the next sample of every expert."""
    rate: float = 0.03
    """Of Adam at first; it falls to 0."""
    initial: float | None = None
    """What every coefficient is at first; None for what the loss's paper has."""
    stay: float = 0.1
    """The weight of the coefficients' distance to it."""
    per_layer: bool = True
    """Whether each layer has coefficients of its own."""

    @property
    def start(self) -> float:
        """What every coefficient is at first."""
        return INITIAL[self.loss] if self.initial is None else self.initial


@dataclass(frozen=True)
class LearnedEntry:
    """What was learned, and what it is worth."""

    coefficients: dict[str, Coefficient]
    """By expert, on the grid."""
    before: float
    """The mean loss over all that it was learned on at the start."""
    after: float
    """The mean loss over all that it was learned on with the coefficients."""


def alignment_loss(target: AnswerOutputs, found: AnswerOutputs) -> Tensor:
    """Return T^2 CE(softmax(z_k / T), softmax(z / T)) + 0.1 MSE(h_k, h), T = 3.

    It takes means over tokens, and over layers for the states. Expert Merging (2025, arXiv
    2509.25712).

    Args:
        target: The expert's own outputs (z_k, h_k), without gradients.
        found: The mix's outputs (z, h).
    """
    wanted = (target.logits / TEMPERATURE).softmax(-1)
    entropy = -(wanted * (found.logits / TEMPERATURE).log_softmax(-1)).sum(-1).mean()
    return TEMPERATURE**2 * entropy + STATES_WEIGHT * mse_loss(found.states, target.states)


def entropy_loss(found: AnswerOutputs) -> Tensor:
    """Return the mean H(p) of the predictions, nats.

    AdaMerging (Yang et al. 2024, arXiv 2310.02575).
    """
    logs = found.logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def learn(
    mixed: MixedModel,
    samples: Samples,
    rules: MixRules,
    settings: LearnSettings,
    tell: Callable[[float], None] = lambda loss: None,
) -> LearnedEntry:
    """Learn the coefficients of an entry, by Adam.

    It minimises the mean over experts of the loss on their samples, and stay * mean_l sum_k |c[l,
    k] - initial|. A step takes the next sample of every expert. The loss is over the tokens of the
    experts' own greedy answers, for there they differ from the base. Coefficients are clamped to
    the range of `rules`, and put on its grid at the end.

    Args:
        mixed: The base with the experts.
        samples: By expert, in the order of mixed.experts, one or more each.
        rules: The range and the grid of coefficients.
        settings: How to learn.
        tell: Is called after each step with its loss.
    """
    rows = mixed.layers if settings.per_layer else 1
    learned = torch.full((rows, len(samples)), settings.start, requires_grad=True)

    def loss(coefficients: Tensor, expert: int, number: int) -> Tensor:
        return _loss(mixed, expert, samples[expert][number], coefficients, settings.loss)

    def stay() -> Tensor:
        return settings.stay * (learned - settings.start).abs().sum(1).mean()

    def confine() -> Tensor:
        return learned.clamp_(rules.minimum, rules.maximum)

    # Learn.
    current = partial(loss, learned)
    before = compute_mean_loss(current, samples)
    descend([learned], current, samples, settings.steps, settings.rate, tell, stay, confine)

    # Put what was learned on the grid, and measure that.
    final, on_grid = put_on_grid(mixed, rules, learned.detach())
    return LearnedEntry(final, before, compute_mean_loss(partial(loss, on_grid), samples))


def put_on_grid(
    mixed: MixedModel, rules: MixRules, learned: Tensor
) -> tuple[dict[str, Coefficient], Tensor]:
    """Return the coefficients of an entry, by expert, and what they are in every layer.

    Args:
        mixed: The base with the experts.
        rules: The range and the grid of coefficients.
        learned: [layers, experts], or [1, experts] for one coefficient an expert.

    Returns:
        The second is shaped as `learned`.
    """
    per_layer = len(learned) > 1
    coefficients = {
        expert.name: tuple(column) if per_layer else column[0]
        for expert, column in zip(mixed.experts, learned.T.tolist(), strict=True)
    }
    on_grid = torch.tensor([[rules.snap(c) for c in row] for row in learned.tolist()])
    return rules.entry(coefficients).as_dict(), on_grid


def _loss(
    mixed: MixedModel, expert: int, sample: Sample, coefficients: Tensor, kind: Loss
) -> Tensor:
    found = mixed.predict(sample, coefficients.expand(mixed.layers, -1))
    if kind == "entropy":
        return entropy_loss(found)
    with torch.no_grad():
        target = mixed.predict(sample, mixed.isolate(expert))
    return alignment_loss(target, found)
