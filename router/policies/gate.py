"""gate: a trained router; experts that it does not know are left to retrieval."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policies.retrieval import RetrievalOptions, RetrievalPolicy
from router.policies.selector import InlineSelector, Selection
from router.policy import Context, Options
from router.probing import Probe, feature_layer
from router.scoring.heads import Head
from router.scoring.shares import keep_best, softmax
from router.scoring.trained_gate import Gate

_ANY_TEXT = "Hello"
_SOFTER = 3.0
"""The temperature at which experts are weighed for a segment, over that of the gate."""
_HEARD = 0.1
"""The p at that temperature from which on an expert has a segment."""


class GateOptions(Options):
    """Options of `gate`."""

    name: str = Field("gate", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The name of the trained gate."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """On 1 - p(none), instead of the trained one."""
    top: int = Field(3, ge=1)
    """How many experts a mix has at most."""
    segments: float | None = Field(None, gt=0, lt=1)
    """The p that a request wants several experts, from which on they answer one after the other, at
    most `top` in all, in place of the best one alone. Unset, likely experts are mixed."""
    retrieval: RetrievalOptions = RetrievalOptions()
    """Options of the retrieval that stands in for experts the gate does not know."""


class GatePolicy(InlineSelector):
    """The experts that a trained gate thinks likely, unless "none of them" is likelier.

    Scores are p = softmax(head(z) / T) of `router.scoring.trained_gate`, the odds of "none of them"
    multiplied by t / (1 - t).

    t is the threshold on 1 - p(none): with its odds so moved, none of them answers from 1/2 on, and
    its p, the floor, compares with the experts'. Otherwise shares are the p of the `top` best
    experts, divided by their sum. Twin-Merging's router (Lu et al. 2024, arXiv 2406.15479) plus the
    class of none.

    The gate knows an expert as long as its digest is what it was in training. An output whose
    expert is gone is left out of the softmax. Experts that it does not know are left to `retrieval`
    over all, if that has examples of all that the gate knows: where it chooses one that the gate
    does not know, its selection is the answer, with scores softmax(s / T) over margins and
    threshold, the latter in the place of none.

    With `segments` experts are not mixed. Where the gate's second head finds that the request wants
    the work of several, the best expert is followed by the next ones, each in a segment of its own,
    whose p is at least 0.1 at three times the temperature: p itself is made to tell the best one,
    and leaves little to a second.
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
        self._segments = options.segments
        self._gate = gate
        self._known = sorted(known)
        self._outputs = [*(gate.names.index(name) for name in self._known), len(gate.names)]
        self._retrieval = retrieval
        self.threshold = gate.about.threshold if options.threshold is None else options.threshold

    @classmethod
    async def create(cls, options: GateOptions, context: Context) -> Self:
        if context.artifacts is None:
            raise RouterError(
                "the policy 'gate' needs a library with a gate: tta router train --library DIR"
                " --base FOLDER"
            )
        gate = await asyncio.to_thread(Gate.load, context.artifacts, options.name)
        if options.segments is not None and gate.several is None:
            raise RouterError(
                f"the gate {options.name!r} was trained without requests for two experts, which"
                " options.segments needs: add files <expert>+<expert>.txt to the folder of"
                " tta router train --prompts"
            )
        await _check_features(gate, context)
        trained = gate.about.digests.items()
        same = (name for name, digest in trained if context.digests.get(name) == digest)
        known = context.rules.classes.intersection(same)
        retrieval = None
        if context.rules.classes - known:
            retrieval = await RetrievalPolicy.create(options.retrieval, context)
            if not known <= retrieval.candidates:
                retrieval = None  # what is new would take the prompts of those it knows nothing of
        return cls(options, context.rules, gate, known, retrieval, inline=context.inline)

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        features = await self.read_features(prompt, probe)
        if self._retrieval:
            found = self._retrieval.select_by(features)
            if found.weights and next(iter(found.weights)) not in self._known:
                return _in_shares(found, self._retrieval.temperature)

        logits = self._gate.compute_logits(features)[self._outputs].double() + self._offset
        *experts, none = logits.tolist()
        several = float(self._gate.compute_several(features))
        return self._select_by(dict(zip(self._known, experts, strict=True)), none, several)

    def make_heads(self) -> tuple[Head, ...]:
        """Return retrieval's heads for experts that the gate does not know, then its own."""
        weight, bias = (part[self._outputs] for part in self._gate.as_linear())
        own = Head(
            names=tuple(self._known),
            mean=self._gate.mean,
            std=self._gate.std,
            weight=weight,
            bias=bias + self._offset.float(),
            odds=True,
            top=self._most_mixed,
            keep=self.keep,
            in_shares=True,
            several=self._gate.several,
        )
        if not self._retrieval:
            return (own,)
        others = [
            replace(
                head,
                only=self.rules.classes.difference(self._known),
                keep=self.keep,
                in_shares=True,
            )
            for head in self._retrieval.make_heads()
        ]
        return *others, own

    def judge(
        self, head: int, scores: Mapping[str, float], floor: float, several: float = -math.inf
    ) -> Selection:
        if self._retrieval and head == 0:
            found = self._retrieval.judge(head, scores, floor)
            return _in_shares(found, self._retrieval.temperature)
        return self._select_by(scores, floor, several)

    @property
    def makes_segments(self) -> bool:
        return self._segments is not None

    @property
    def _most_mixed(self) -> int:
        return 1 if self.makes_segments else self._top

    @property
    def _offset(self) -> Tensor:
        """What moves the odds of none, [outputs]."""
        return torch.tensor([0.0] * len(self._known) + [_logit(self.threshold)]).double()

    def _select_by(self, logits: Mapping[str, float], none: float, several: float) -> Selection:
        scores = softmax({"": none, **logits})
        floor = scores.pop("")
        weights = {} if floor > 0.5 else keep_best(scores, self._most_mixed)
        then: tuple[str, ...] = ()
        if weights and self._segments is not None and several >= _logit(self._segments):
            soft = softmax({"": none, **logits}, _SOFTER)
            _, *others = keep_best(scores, self._top)
            then = tuple(name for name in others if soft[name] >= _HEARD)
        return Selection(weights, scores, floor, f"p(none of them) {floor:.3f}", then)


async def _check_features(gate: Gate, context: Context) -> None:
    """Check that the gate reads the same features as the server.

    Raises:
        RouterError: It reads others.
    """
    layer = feature_layer(context.rules.layers)
    size = len(await context.probe.features(_ANY_TEXT))
    if (gate.about.layer, len(gate.mean)) != (layer, size):
        raise RouterError(
            f"the gate reads {len(gate.mean)} features of layer {gate.about.layer}, the server"
            f" reads {size} of layer {layer}; make it anew with: tta router train --layer {layer}"
        )


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _in_shares(found: Selection, temperature: float) -> Selection:
    """Return retrieval's selection with scores that compare with the gate's."""
    shares = softmax({"": found.floor, **found.scores}, temperature)
    floor = shares.pop("")
    reason = f"{found.reason}, by retrieval: the gate does not know this expert"
    return Selection(found.weights, shares, floor, reason)
