"""Gates for each weight of each expert, trained on a few prompts of every expert, without labels: `tta router gates`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from adapters.expert import Expert
from adapters.layer_gates import Gates, LayerGate
from tta_serve.descent import Samples, descend, mean_loss
from tta_serve.mixed import Mixed, Sample, Site

_LEAST = 1e-9  # beside a square: the root of nothing has no slope


@dataclass(frozen=True)
class Settings:
    """steps: each takes the next sample of every expert   rate: of Adam, falling to 0"""

    steps: int = 60
    rate: float = 0.1


@dataclass(frozen=True)
class Trained:
    """before, after: the mean loss over all samples with untrained gates, and with these"""

    gates: Gates
    before: float
    after: float


class Gating:
    """The rule of `adapters.gating` with score 'trained', T = 1, and every expert a candidate, that gradients flow through."""

    def __init__(self, mixed: Mixed) -> None:
        self._experts = len(mixed.experts)
        self._of = {site.name: one_hot(site.owners, self._experts).float() for site in mixed.sites}
        self._log_g = {site.name: torch.zeros(len(site.owners), requires_grad=True) for site in mixed.sites}
        self._d = {site.name: torch.zeros(self._experts, requires_grad=True) for site in mixed.sites}

    def __call__(self, site: Site, h: Tensor) -> Tensor:
        of = self._of[site.name]
        scores = ((h.square() * self._log_g[site.name].exp()) @ of + _LEAST).sqrt() + self._d[site.name]
        absent = of.sum(0) == 0
        return scores.masked_fill(absent, -torch.inf).softmax(-1)[..., site.owners]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self._log_g.values(), *self._d.values()]

    @torch.no_grad()
    def gates(self, site: Site) -> dict[int, LayerGate]:
        """Of each expert that touches the weight, by its number."""
        g, d = self._log_g[site.name].exp(), self._d[site.name]
        return {k: LayerGate(g[site.owners == k], float(d[k])) for k in site.owners.unique().tolist()}


def train(
    mixed: Mixed,
    originals: Sequence[Expert],
    samples: Samples,
    settings: Settings = Settings(),
    tell: Callable[[float], None] = lambda loss: None,
) -> Trained:
    """Minimise the mean over experts of -log p of their own greedy answers, given that every token is gated, by Adam.

    As X-LoRA trains its scalings, base and experts frozen. From g = 1 and d = 0, over log g and d.

    mixed: of the canonical forms of the `originals`   samples: by expert, in this order, one or more each
    tell: is called after each step with its loss
    """
    wanted = [[_greedy(mixed, k, sample) for sample in own] for k, own in enumerate(samples)]
    gating = Gating(mixed)

    def loss(expert: int, number: int) -> Tensor:
        return cross_entropy(mixed.outputs(samples[expert][number], gating).logits, wanted[expert][number])

    before = mean_loss(loss, samples)
    descend(gating.parameters, loss, samples, settings.steps, settings.rate, tell)
    found: dict[str, dict[str, LayerGate]] = {expert.digest: {} for expert in originals}
    for site in mixed.sites:
        for k, gate in gating.gates(site).items():
            found[originals[k].digest][site.name] = gate
    return Trained(found, before, mean_loss(loss, samples))


@torch.no_grad()
def _greedy(mixed: Mixed, expert: int, sample: Sample) -> Tensor:
    return mixed.outputs(sample, mixed.alone(expert)).logits.argmax(-1)
