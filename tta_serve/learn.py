"""Coefficients for each layer, learned on a few prompts of every expert, without labels: `tta router learn`."""

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
from tta_serve.descent import Samples, descend, mean_loss
from tta_serve.mixed import Mixed, Outputs, Sample

TEMPERATURE = 3.0
STATES_WEIGHT = 0.1

Loss = Literal["alignment", "entropy"]
INITIAL: dict[Loss, float] = {"alignment": 0.1, "entropy": 0.3}


@dataclass(frozen=True)
class Settings:
    """initial: every coefficient at first, None for that of the loss's paper   stay: weight of the distance to it
    rate: of Adam, falling to 0   per_layer: a coefficient for each layer, or one an expert
    """

    loss: Loss = "alignment"
    steps: int = 60
    rate: float = 0.03
    initial: float | None = None
    stay: float = 0.1
    per_layer: bool = True

    @property
    def start(self) -> float:
        return INITIAL[self.loss] if self.initial is None else self.initial


@dataclass(frozen=True)
class Learned:
    """coefficients: by expert, on the grid   before, after: the mean loss over all samples at the start and with those"""

    coefficients: dict[str, Coefficient]
    before: float
    after: float


def alignment(target: Outputs, found: Outputs) -> Tensor:
    """T^2 CE(softmax(z_k / T), softmax(z / T)) + 0.1 MSE(h_k, h), T = 3, means over tokens, and over layers for the states.

    Expert Merging (2025, arXiv 2509.25712). target: the expert's own outputs, without gradients
    """
    wanted = (target.logits / TEMPERATURE).softmax(-1)
    entropy = -(wanted * (found.logits / TEMPERATURE).log_softmax(-1)).sum(-1).mean()
    return TEMPERATURE**2 * entropy + STATES_WEIGHT * mse_loss(found.states, target.states)


def entropy(found: Outputs) -> Tensor:
    """Mean H(p) of the predictions, nats. AdaMerging (Yang et al. 2024, arXiv 2310.02575)."""
    logs = found.logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def learn(
    mixed: Mixed,
    samples: Samples,
    rules: MixRules,
    settings: Settings,
    tell: Callable[[float], None] = lambda loss: None,
) -> Learned:
    """Minimise the mean over experts of the loss on their samples, and stay * mean_l sum_k |c[l, k] - initial|, by Adam.

    A step takes the next sample of every expert. The loss is over the tokens of the experts' own greedy answers, for there
    they differ from the base. Coefficients are clamped to the range of `rules`, and put on its grid at the end.

    samples: by expert, in the order of mixed.experts, one or more each   tell: is called after each step with its loss
    """
    rows = mixed.layers if settings.per_layer else 1
    learned = torch.full((rows, len(samples)), settings.start, requires_grad=True)

    def loss(coefficients: Tensor, expert: int, number: int) -> Tensor:
        return _loss(mixed, expert, samples[expert][number], coefficients, settings.loss)

    def stay() -> Tensor:
        return settings.stay * (learned - settings.start).abs().sum(1).mean()

    def confine() -> Tensor:
        return learned.clamp_(rules.minimum, rules.maximum)

    before = mean_loss(partial(loss, learned), samples)
    descend([learned], partial(loss, learned), samples, settings.steps, settings.rate, tell, stay, confine)
    coefficients = {
        expert.name: tuple(column) if settings.per_layer else column[0]
        for expert, column in zip(mixed.experts, learned.T.tolist(), strict=True)
    }
    final = rules.entry(coefficients)
    on_grid = torch.tensor([[rules.rounded(c) for c in row] for row in learned.tolist()])
    return Learned(final.as_dict(), before, mean_loss(partial(loss, on_grid), samples))


def _loss(mixed: Mixed, expert: int, sample: Sample, coefficients: Tensor, kind: Loss) -> Tensor:
    found = mixed.outputs(sample, coefficients.expand(mixed.layers, -1))
    if kind == "entropy":
        return entropy(found)
    with torch.no_grad():
        target = mixed.outputs(sample, mixed.alone(expert))
    return alignment(target, found)
