"""t3: each expert of a selector is trusted by how much it disagrees with the base."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from router.decision import Decision
from router.policies.comparison import (
    Asked,
    ComparedOptions,
    ComparedPolicy,
    compare_at_home,
    describe,
)
from router.policies.selector import Selection
from router.policy import Context
from router.probing import Outputs
from router.scoring.blend import blend
from router.scoring.divergence import to_bits

# Gamma at most: an expert that always disagrees alike would have an endless one.
_STEEPEST = 1000.0


class T3Options(ComparedOptions):
    """Options of `t3`."""

    preset: Literal["t3-own-bounds", "t3-calibrated"] = "t3-own-bounds"
    """Gamma as published, and bounds of our own; or gamma and tau calibrated by expert, which is
    all our own. There is none with all constants of the paper, see the policy."""
    direction: Literal["base_on_disagreement", "expert_on_disagreement"] = "base_on_disagreement"
    """Who gains where the two disagree."""
    gamma: float | None = Field(None, gt=0)
    """Per bit, instead of the preset's."""
    tau: float | None = None
    """Bits, instead of the preset's."""
    lam_min: float = Field(0.0, ge=0, le=1)
    """The least that the gainer gets."""
    lam_max: float = Field(1.0, ge=0, le=1)
    """The most that the gainer gets."""
    calibrate_on: int = Field(8, ge=2)
    """So many example prompts an expert calibrate it."""

    @field_validator("preset", mode="before")
    @classmethod
    def _renamed(cls, value: object) -> object:
        if value == "t3-paper":
            raise ValueError(
                "'t3-paper' is called 't3-own-bounds' now: its bounds of lambda are not the paper's"
            )
        return value

    @field_validator("lam_max")
    @classmethod
    def _not_below(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("lam_min", 0.0):
            raise ValueError("must not be below lam_min")
        return value


@dataclass(frozen=True)
class DisagreementEdge:
    """Where disagreement begins to count."""

    tau: float = 0.0
    """Bits, where half of it does."""
    gamma: float = 0.5
    """How sharply, per bit."""

    @classmethod
    def from_home(cls, js: Tensor) -> "DisagreementEdge":
        """Return the edge of an expert, by its disagreement with the base on its own prompts.

        tau is the 95th percentile of them, and g is 0.1 at their median: more disagreement than
        usual begins to count.

        Args:
            js: Bits, [prompts].
        """
        tau = float(js.quantile(0.95))
        median = float(js.quantile(0.5))
        return cls(tau, min(math.log(9) / max(tau - median, 1e-9), _STEEPEST))


class T3Policy(ComparedPolicy):
    """The selector's shares, each scaled by how much its expert disagrees with the base.

    With w the selector's shares and JS_k the Jensen-Shannon divergence of expert k's predictions
    from the base's, in bits:

        g_k = sigmoid(gamma (JS_k - tau_k))          u_k = lam_min + (lam_max - lam_min) g_k
        c_k = w_k (1 - u_k)   base_on_disagreement       c_k = w_k u_k   expert_on_disagreement

    One expert with w = 1 is the interpolation of two models that T^3 describes (arXiv 2510.27265,
    for image classifiers). Experts without a share on the grid are not compared.

    The authors' are the formula u without tau, and gamma = 0.5, the default of their code. Ours
    are all else: what they set lam_min and lam_max to could not be found (preset t3-own-bounds has
    0 and 1, with which u uses [0.5, 0.62] of its range), nor in which unit JS is (bits here), nor
    beyond doubt which of the two gains, hence two named directions. The window over tokens, and w
    of several experts, are what a language model adds. Preset t3-calibrated has gamma and tau of
    our own too, by expert.

    JS says nothing of the topic, so scores and floor are the selector's, and what moves a
    conversation is what moves it there.
    """

    Options = T3Options

    async def calibrate(self, context: Context) -> None:
        options: T3Options = self.options
        self.edges = dict.fromkeys(context.rules.classes, DisagreementEdge())
        if options.preset == "t3-calibrated" and None in (options.tau, options.gamma):
            home = await compare_at_home(context, options.window.to_window(), options.calibrate_on)
            self.edges = {
                name: DisagreementEdge.from_home(to_bits(torch.cat([o.js for o in found])))
                for name, found in home.items()
            }

    def weigh(
        self, shares: Mapping[str, float], selection: Selection, outputs: Outputs
    ) -> Decision:
        js = to_bits(outputs.js).tolist()
        reason = describe("disagreement in bits", list(shares), js)
        own = self.scale(Asked(selection, shares, outputs))
        return self.decide_weights(own, selection, reason)

    def scale(self, asked: Asked) -> dict[str, float]:
        """Return the coefficients of one prompt, none if the selector abstains."""
        if asked.outputs is None:
            return {}
        js = zip(asked.shares.items(), to_bits(asked.outputs.js).tolist(), strict=True)
        return {name: share * self.trust(name, value) for (name, share), value in js}

    def decide_weights(
        self, weights: Mapping[str, float], selection: Selection, reason: str
    ) -> Decision:
        """Return the decision for these coefficients, whose scores are the selector's."""
        mix = blend(weights, self.rules)
        return Decision(mix, selection.scores, mix.is_base, reason, selection.floor)

    def trust(self, name: str, js: float) -> float:
        """Return what an expert gets of its share.

        Args:
            name: The expert.
            js: Its disagreement with the base, bits.
        """
        options = self.options
        edge = self.edges[name]
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

    def should_move(self, before: Decision, now: Decision) -> bool:
        return self.selector.should_move(before, now)
