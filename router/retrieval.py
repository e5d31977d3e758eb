"""Retrieval: the experts whose example prompts look most like this one to the base's own early layers."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import MixRules
from router.centroids import FOLDS, Calibration, Centroids, calibrate, fit
from router.inline import Head
from router.policy import Context, InlineSelector, Options, Probe, Prompt, RouterError, Selection
from router.probing import all_features
from router.shares import best, softmax

_MOST = {"top1": 1, "top3": 3}


class RetrievalOptions(Options):
    """mode: which shares count   threshold, temperature: instead of the calibrated ones   minimum: of a share, for `sparse`
    keep: by how much another margin must be ahead to end a conversation's mix
    """

    mode: Literal["top1", "top3", "sparse"] = "top3"
    threshold: float | None = None
    temperature: float | None = Field(None, gt=0)
    minimum: float = Field(0.01, ge=0, lt=1)
    keep: float = Field(0.1, ge=0)


class RetrievalPolicy(InlineSelector):
    """Scores are margins s of `router.centroids` on the mean early-layer state of the last user turn.

    Abstains if the best margin is below the threshold. Otherwise shares are softmax(s / T), of which count, divided by their
    sum: the best (`top1`), the three best (`top3`), or all over `minimum` (`sparse`). T is calibrated, which makes them
    peaked: a clear prompt gets one expert, an ambiguous one a blend.

    Retrieval by prompt similarity: LoraRetriever (Zhao et al. 2024, arXiv 2402.09997: one or three experts), TTMM
    (Bertolissi et al. 2025, arXiv 2505.14136: sparse, minimum 0.01); both embed with a second model, here the base does.
    """

    Options = RetrievalOptions
    reads_features = True

    def __init__(
        self, options: RetrievalOptions, rules: MixRules, centroids: Centroids, calibration: Calibration, *, inline: bool
    ) -> None:
        super().__init__(rules, inline=inline)
        self._options = options
        self.keep = options.keep
        self._centroids = centroids
        self.threshold = calibration.threshold if options.threshold is None else options.threshold
        self.temperature = options.temperature or calibration.temperature

    @classmethod
    async def create(cls, options: RetrievalOptions, context: Context) -> Self:
        names = sorted(context.rules.names)
        _check(names, context)
        read = partial(all_features, probe=context.probe, chat=context.inline)
        features = {name: await read(context.examples[name]) for name in names}
        everyday = await read(context.everyday)
        fitted = await asyncio.to_thread(lambda: (fit(features, everyday), calibrate(features, everyday)))
        return cls(options, context.rules, *fitted, inline=context.inline)

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        return self.selected(await self.features(prompt, probe))

    def selected(self, features: Tensor) -> Selection:
        """The selection for one prompt's features, [d]."""
        margins = self._centroids.scores(features).tolist()
        return self.judged(0, dict(zip(self._centroids.names, margins, strict=True)), self.threshold)

    def heads(self) -> tuple[Head, ...]:
        """Margins are linear in z: s_k = <z, c_k - c_none>."""
        known, most = self._centroids, _MOST.get(self._options.mode)
        weight = torch.cat([known.experts - known.none, torch.zeros_like(known.none).unsqueeze(0)])
        bias = torch.tensor([0.0] * len(known.names) + [self.threshold])
        top, rest = most or len(known.names), self._minimum
        head = Head(known.names, known.mean, known.std, weight, bias, True, False, self.temperature, top, rest)
        return (head,)

    def judged(self, head: int, scores: Mapping[str, float], floor: float) -> Selection:
        margin = max(scores.values())
        if margin < floor:
            return Selection({}, scores, floor, f"best margin {margin:.3f} below {floor:.3f}")
        shares = softmax(scores, self.temperature)
        weights = best(shares, _MOST.get(self._options.mode), self._minimum)
        return Selection(weights, scores, floor, f"best margin {margin:.3f}")

    @property
    def _minimum(self) -> float:
        return self._options.minimum if self._options.mode == "sparse" else 0.0


def _check(names: list[str], context: Context) -> None:
    """Raises RouterError unless there are experts, with enough examples, and enough everyday prompts."""
    if not names:
        raise RouterError("retrieval needs an expert to choose; without any, choose the policy 'static'")
    missing = [name for name in names if len(context.examples.get(name, ())) < FOLDS]
    if missing:
        raise RouterError(
            f"retrieval needs at least {FOLDS} example prompts an expert, one a line in its examples.txt; "
            f"too few for: {', '.join(missing)}. Add them, or choose the policy 'static'"
        )
    if len(context.everyday) < FOLDS:
        raise RouterError(f"retrieval needs at least {FOLDS} everyday prompts, one a line in the file of library.everyday")
