"""t3: how far each expert of a selector is trusted, by how much it disagrees with the base."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from router.blend import blend
from router.comparison import ComparedOptions, ComparedPolicy, at_home, told
from router.divergence import bits
from router.policy import Context, Decision, Outputs, Prompt, Selection

_STEEPEST = 1000.0  # gamma at most: an expert that always disagrees alike would have an endless one


class T3Options(ComparedOptions):
    """preset: gamma and tau as published, or calibrated by expert on so many prompts (`calibrate_on`); `gamma` (per bit) and
    `tau` (bits) replace the preset's

    direction: who gains where the two disagree   lam_min, lam_max: bounds of what the gainer gets
    """

    preset: Literal["t3-paper", "t3-calibrated"] = "t3-paper"
    direction: Literal["base_on_disagreement", "expert_on_disagreement"] = "base_on_disagreement"
    gamma: float | None = Field(None, gt=0)
    tau: float | None = None
    lam_min: float = Field(0.0, ge=0, le=1)
    lam_max: float = Field(1.0, ge=0, le=1)
    calibrate_on: int = Field(8, ge=2)

    @field_validator("lam_max")
    @classmethod
    def _not_below(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("lam_min", 0.0):
            raise ValueError("must not be below lam_min")
        return value


@dataclass(frozen=True)
class Edge:
    """Where disagreement begins to count. tau: bits, where half of it does   gamma: how sharply, per bit"""

    tau: float = 0.0
    gamma: float = 0.5

    @classmethod
    def at_home(cls, js: Tensor) -> "Edge":
        """Of an expert that disagrees with the base by `js` (bits, [prompts]) on prompts of its own kind.

        tau is their 95th percentile, and g is 0.1 at their median: more disagreement than usual begins to count.
        """
        tau, median = float(js.quantile(0.95)), float(js.quantile(0.5))
        return cls(tau, min(math.log(9) / max(tau - median, 1e-9), _STEEPEST))


class T3Policy(ComparedPolicy):
    """With w the selector's shares and JS_k the Jensen-Shannon divergence of expert k's predictions from the base's, in bits:

        g_k = sigmoid(gamma (JS_k - tau_k))          u_k = lam_min + (lam_max - lam_min) g_k
        c_k = w_k (1 - u_k)   base_on_disagreement       c_k = w_k u_k   expert_on_disagreement

    One expert with w = 1 is the interpolation of two models that T^3 describes (arXiv 2510.27265, for image classifiers).
    Which of the two gains is disputed, hence two named directions. It has gamma = 0.5 and no tau (preset t3-paper), with which
    u uses [0.5, 0.62] of its range. Experts without a share on the grid are not compared.

    JS says nothing of the topic, so scores and floor are the selector's, and what moves a conversation is what moves it there.
    """

    Options = T3Options

    async def calibrate(self, context: Context) -> None:
        options: T3Options = self.options
        self.edges = dict.fromkeys(context.rules.names, Edge())
        if options.preset == "t3-calibrated" and None in (options.tau, options.gamma):
            home = await at_home(context, options.window.of_tokens(), options.calibrate_on)
            self.edges = {name: Edge.at_home(bits(torch.cat([o.js for o in found]))) for name, found in home.items()}

    async def weigh(self, prompt: Prompt, shares: Mapping[str, float], selection: Selection, outputs: Outputs) -> Decision:
        js = dict(zip(shares, bits(outputs.js).tolist(), strict=True))
        weights, among = await self.agreed(prompt, {name: w * self.trust(name, js[name]) for name, w in shares.items()})
        reason = told("disagreement in bits", list(js), list(js.values()))
        if among > 1:
            reason += f"; coefficients shared by {among} requests of one tenant"
        mix = blend(weights, self.rules)
        return Decision(mix, selection.scores, mix.is_base, reason, selection.floor)

    async def agreed(self, prompt: Prompt, coefficients: dict[str, float]) -> tuple[dict[str, float], int]:
        """The coefficients to use, and for how many requests they are."""
        return coefficients, 1

    def trust(self, name: str, js: float) -> float:
        """What an expert gets of its share. js: bits"""
        options, edge = self.options, self.edges[name]
        tau = edge.tau if options.tau is None else options.tau
        gamma = edge.gamma if options.gamma is None else options.gamma
        g = 1 / (1 + math.exp(min(gamma * (tau - js), 700.0)))
        u = options.lam_min + (options.lam_max - options.lam_min) * g
        return float(u if options.direction == "expert_on_disagreement" else 1 - u)

    def shortlist(self, weights: Mapping[str, float]) -> dict[str, float]:
        shares = super().shortlist(weights)
        there = blend(shares, self.rules).as_dict()
        kept = {name: share for name, share in shares.items() if name in there}
        return {name: share / sum(kept.values()) for name, share in kept.items()}

    def moved(self, before: Decision, now: Decision) -> bool:
        return self.selector.moved(before, now)
