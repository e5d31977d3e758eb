"""Retrieval: the experts whose example prompts look most like this one to the base's own early layers."""

import asyncio
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import Mix, MixRules
from router.centroids import FOLDS, Calibration, Centroids, calibrate, fit
from router.policy import Context, Decision, Options, Policy, Probe, Prompt, RouterError

_AT_ONCE = 16


class RetrievalOptions(Options):
    """top: experts at most in a mix   threshold, temperature: instead of the calibrated ones"""

    top: int = Field(3, ge=1)
    threshold: float | None = None
    temperature: float | None = Field(None, gt=0)


class RetrievalPolicy(Policy):
    """Scores from `router.centroids` on the mean early-layer state of the last user turn.

    Abstains if the best margin is below the threshold. Otherwise the coefficients are softmax(s / T) over the `top` best
    margins, on the grid, the best expert taking what rounding leaves, so that they sum to one. T is calibrated, which makes
    them peaked: a clear prompt gets one expert, an ambiguous one a blend.

    Retrieval by prompt similarity: LoraRetriever (Zhao et al. 2024, arXiv 2402.09997), TTMM (Bertolissi et al. 2025, arXiv
    2505.14136); both embed with a second model, here the base itself does.
    """

    Options = RetrievalOptions
    reads_features = True

    def __init__(self, options: RetrievalOptions, rules: MixRules, centroids: Centroids, calibration: Calibration) -> None:
        self._rules = rules
        self._centroids = centroids
        self._top = min(options.top, len(centroids.names), rules.max_experts)
        self.threshold = calibration.threshold if options.threshold is None else options.threshold
        self.temperature = options.temperature or calibration.temperature

    @classmethod
    async def create(cls, options: RetrievalOptions, context: Context) -> Self:
        missing = [name for name in sorted(context.rules.names) if len(context.examples.get(name, ())) < FOLDS]
        if missing:
            raise RouterError(
                f"retrieval needs at least {FOLDS} example prompts an expert, one a line in its examples.txt; "
                f"too few for: {', '.join(missing)}. Add them, or choose the policy 'static'"
            )
        features = {name: await _all_features(prompts, context.probe) for name, prompts in context.examples.items()}
        everyday = await _all_features(context.everyday, context.probe)
        fitted = await asyncio.to_thread(lambda: (fit(features, everyday), calibrate(features, everyday)))
        return cls(options, context.rules, *fitted)

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if not prompt.user_turn.strip():
            return Decision(Mix(), abstained=True, reason="no user text to route by")
        return self.decide(await probe.features(prompt.user_turn))

    def decide(self, features: Tensor) -> Decision:
        """The decision for one prompt's features, [d]."""
        margins = self._centroids.scores(features)
        scores = dict(zip(self._centroids.names, margins.tolist(), strict=True))
        best = float(margins.max())
        if best < self.threshold:
            return Decision(Mix(), scores, True, f"best margin {best:.3f} below {self.threshold:.3f}")
        return Decision(self._mix(margins), scores, False, f"best margin {best:.3f}")

    def _mix(self, margins: Tensor) -> Mix:
        values, order = margins.topk(self._top)
        weights = torch.softmax(values / self.temperature, 0).tolist()
        names = [self._centroids.names[i] for i in order.tolist()]
        rest = {name: self._rules.rounded(weight) for name, weight in zip(names[1:], weights[1:], strict=True)}
        return self._rules.mix({names[0]: 1.0 - sum(rest.values()), **rest})


async def _all_features(prompts: Sequence[str], probe: Probe) -> Tensor:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(text: str) -> Tensor:
        async with gate:
            return await probe.features(text)

    return torch.stack(await asyncio.gather(*(one(p) for p in prompts)))
