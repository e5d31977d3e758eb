"""Gates for each weight of each expert, trained on a few prompts of each: `tta router gates`.

It needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from adapters.bank.layer_gates import Gates, LayerGate
from adapters.expert import Expert
from tta_serve.offline.mixed_model import MixedModel, Sample, Site
from tta_serve.offline.optimise import Samples, compute_mean_loss, descend

_LEAST = 1e-9  # beside a square: the root of nothing has no slope


@dataclass(frozen=True)
class LayerGateSettings:
    """How to train."""

    steps: int = 60
    """Each takes the next sample of every expert."""
    rate: float = 0.1
    """Of Adam at first; it falls to 0."""


@dataclass(frozen=True)
class TrainedLayerGates:
    """The gates, and what they are worth."""

    gates: Gates
    """By the digest of the expert and the weight."""
    before: float
    """The mean loss over all samples with untrained gates."""
    after: float
    """The mean loss over all samples with the gates."""


class TrainableGating:
    """A rule of coefficients that gradients flow through.

    It is that of `adapters.bank.token_gating` with score 'trained', T = 1, and every expert a
    candidate.
    """

    def __init__(self, mixed: MixedModel) -> None:
        self._experts = len(mixed.experts)
        self._of = {site.name: one_hot(site.owners, self._experts).float() for site in mixed.sites}
        self._log_g = {
            site.name: torch.zeros(len(site.owners), requires_grad=True) for site in mixed.sites
        }
        self._d = {
            site.name: torch.zeros(self._experts, requires_grad=True) for site in mixed.sites
        }

    def __call__(self, site: Site, h: Tensor) -> Tensor:
        of = self._of[site.name]
        squares = (h.square() * self._log_g[site.name].exp()) @ of
        scores = (squares + _LEAST).sqrt() + self._d[site.name]
        absent = of.sum(0) == 0
        return scores.masked_fill(absent, -torch.inf).softmax(-1)[..., site.owners]

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained: log g and d of every weight."""
        return [*self._log_g.values(), *self._d.values()]

    @torch.no_grad()
    def make_gates(self, site: Site) -> dict[int, LayerGate]:
        """Return the gate of each expert that touches the weight, by its number."""
        g = self._log_g[site.name].exp()
        d = self._d[site.name]
        experts = site.owners.unique().tolist()
        return {k: LayerGate(g[site.owners == k], float(d[k])) for k in experts}


def train(
    mixed: MixedModel,
    originals: Sequence[Expert],
    samples: Samples,
    settings: LayerGateSettings = LayerGateSettings(),
    tell: Callable[[float], None] = lambda loss: None,
) -> TrainedLayerGates:
    """Train gates by Adam, from g = 1 and d = 0, over log g and d.

    It minimises the mean over experts of -log p of their own greedy answers, given that every token
    is gated. As X-LoRA trains its scalings, base and experts are frozen.

    Args:
        mixed: The base with the canonical forms of the `originals`.
        originals: The experts, as the library has them.
        samples: By expert, in this order, one or more each.
        settings: How to train.
        tell: Is called after each step with its loss.
    """
    wanted = [
        [_choose_greedily(mixed, k, sample) for sample in own] for k, own in enumerate(samples)
    ]
    gating = TrainableGating(mixed)

    def loss(expert: int, number: int) -> Tensor:
        found = mixed.predict(samples[expert][number], gating)
        return cross_entropy(found.logits, wanted[expert][number])

    before = compute_mean_loss(loss, samples)
    descend(gating.parameters, loss, samples, settings.steps, settings.rate, tell)
    found: dict[str, dict[str, LayerGate]] = {expert.digest: {} for expert in originals}
    for site in mixed.sites:
        for k, gate in gating.make_gates(site).items():
            found[originals[k].digest][site.name] = gate
    return TrainedLayerGates(found, before, compute_mean_loss(loss, samples))


@torch.no_grad()
def _choose_greedily(mixed: MixedModel, expert: int, sample: Sample) -> Tensor:
    """Return the tokens that the expert alone would choose at each place of the answer."""
    return mixed.predict(sample, mixed.isolate(expert)).logits.argmax(-1)
