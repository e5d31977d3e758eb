"""Gate: a trained router; experts that it does not know are left to retrieval."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import MixRules
from router.gate_model import Gate
from router.inline import Head
from router.policy import Context, InlineSelector, Options, Probe, Prompt, RouterError, Selection
from router.probing import feature_layer
from router.retrieval import RetrievalOptions, RetrievalPolicy
from router.shares import best, softmax

_ANY_TEXT = "Hello"


class GateOptions(Options):
    """name: of the trained gate   threshold: on 1 - p(none), instead of the trained one   top: experts at most in a mix
    retrieval: options of the retrieval that stands in for experts the gate does not know
    """

    name: str = Field("gate", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    threshold: float | None = Field(None, gt=0, lt=1)
    top: int = Field(3, ge=1)
    retrieval: RetrievalOptions = RetrievalOptions()


class GatePolicy(InlineSelector):
    """Scores are p = softmax(head(z) / T) of `router.gate_model`, the odds of "none of them" multiplied by t / (1 - t).

    t is the threshold on 1 - p(none): with its odds so moved, none of them answers from 1/2 on, and its p, the floor, compares
    with the experts'. Otherwise shares are the p of the `top` best experts, divided by their sum. Twin-Merging's router
    (Lu et al. 2024, arXiv 2406.15479) plus the class of none.

    The gate knows an expert as long as its digest is what it was in training. An output whose expert is gone is left out of
    the softmax. Experts that it does not know are left to `retrieval` over all: if its choice is one of them, its selection
    is the answer, with scores softmax(s / T) over margins and threshold, the latter in the place of none.
    """

    Options = GateOptions
    reads_features = True
    keep = 0.5

    def __init__(  # noqa: PLR0913 - one part each
        self,
        options: GateOptions,
        rules: MixRules,
        gate: Gate,
        known: frozenset[str],
        retrieval: RetrievalPolicy | None,
        *,
        inline: bool,
    ) -> None:
        super().__init__(rules, inline=inline)
        self._top = options.top
        self._gate = gate
        self._known = sorted(known)
        self._outputs = [*(gate.names.index(name) for name in self._known), len(gate.names)]
        self._retrieval = retrieval
        self.threshold = gate.about.threshold if options.threshold is None else options.threshold

    @classmethod
    async def create(cls, options: GateOptions, context: Context) -> Self:
        if context.artifacts is None:
            raise RouterError("the policy 'gate' needs a library with a gate: tta router train --library DIR --base FOLDER")
        gate = await asyncio.to_thread(Gate.load, context.artifacts, options.name)
        await _check(gate, context)
        same = (name for name, digest in gate.about.digests.items() if context.digests.get(name) == digest)
        known = context.rules.names.intersection(same)
        retrieval = await RetrievalPolicy.create(options.retrieval, context) if context.rules.names - known else None
        return cls(options, context.rules, gate, known, retrieval, inline=context.inline)

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        features = await self.features(prompt, probe)
        if self._retrieval:
            found = self._retrieval.selected(features)
            if found.weights and next(iter(found.weights)) not in self._known:
                return _in_shares(found, self._retrieval.temperature)
        *logits, none = (self._gate.logits(features)[self._outputs].double() + self._offset).tolist()
        return self._gated(dict(zip(self._known, logits, strict=True)), none)

    def heads(self) -> tuple[Head, ...]:
        """Those of `retrieval`, for experts that the gate does not know, before the gate's own."""
        weight, bias = (part[self._outputs] for part in self._gate.linear())
        bias = bias + self._offset.float()
        own = Head(tuple(self._known), self._gate.mean, self._gate.std, weight, bias, odds=True, top=self._top)
        if not self._retrieval:
            return (own,)
        unknown = self.rules.names.difference(self._known)
        return *(replace(head, only=unknown) for head in self._retrieval.heads()), own

    def judged(self, head: int, scores: Mapping[str, float], floor: float) -> Selection:
        if self._retrieval and head == 0:
            return _in_shares(self._retrieval.judged(head, scores, floor), self._retrieval.temperature)
        return self._gated(scores, floor)

    @property
    def _offset(self) -> Tensor:
        """What moves the odds of none. [outputs]"""
        return torch.tensor([0.0] * len(self._known) + [math.log(self.threshold / (1 - self.threshold))]).double()

    def _gated(self, logits: Mapping[str, float], none: float) -> Selection:
        scores = softmax({"": none, **logits})
        floor = scores.pop("")
        weights = {} if floor > 0.5 else best(scores, self._top)
        return Selection(weights, scores, floor, f"p(none of them) {floor:.3f}")


async def _check(gate: Gate, context: Context) -> None:
    """Raises RouterError if the gate reads other features than the server."""
    layer, size = feature_layer(context.rules.layers), len(await context.probe.features(_ANY_TEXT))
    if (gate.about.layer, len(gate.mean)) != (layer, size):
        raise RouterError(
            f"the gate reads {len(gate.mean)} features of layer {gate.about.layer}, the server reads {size} of layer {layer}; "
            f"make it anew with: tta router train --layer {layer}"
        )


def _in_shares(found: Selection, temperature: float) -> Selection:
    """Retrieval's selection with scores that compare with the gate's."""
    shares = softmax({"": found.floor, **found.scores}, temperature)
    floor = shares.pop("")
    return Selection(found.weights, shares, floor, f"{found.reason}, by retrieval: the gate does not know this expert")
