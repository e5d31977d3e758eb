"""Policies that read the weights of the experts and one pass of the base: whose inputs are the base's own states?"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import MixRules
from router.policy import Activations, Context, Options, Probe, Prompt, RouterError, Selection, Selector
from router.probing import gathered
from router.shares import best, softmax

_RARE = 0.95  # of the everyday prompts that many must score below the floor


class ActivationOptions(Options):
    """top: experts at most   temperature: of the softmax over scores   threshold: the floor, instead of the calibrated one

    sites: only those whose name ends so
    """

    top: int = Field(3, ge=1)
    temperature: float = Field(1.0, gt=0)
    threshold: float | None = None
    sites: str | None = Field(None, min_length=1)


class ActivationNormOptions(ActivationOptions):
    """sites: the last attention input that every expert reads, if not given"""


class SubspaceOptions(ActivationOptions):
    """sites: all, if not given   minimum: shares up to it are left out, unless all are"""

    score: Literal["arrow", "spectr", "mass"] = "spectr"
    minimum: float = Field(0.2, ge=0, lt=1)


@dataclass(frozen=True)
class Usual:
    """What everyday prompts measure, for each expert and site. shift, scale: [experts, sites], NaN where there is nothing"""

    experts: list[str]
    sites: list[str]
    shift: Tensor
    scale: Tensor

    def scores(self, measured: Tensor) -> Tensor:
        """Mean over an expert's sites of (measured - shift) / scale.

        measured: [..., experts, sites]. Returns [..., experts].
        """
        return ((measured - self.shift) / self.scale).nanmean(-1)


class ActivationSelector(Selector):
    """Scores relative to what everyday prompts measure; abstains where 95 % of those would have scored lower.

    Nothing but everyday prompts is needed, no example of what an expert is for. Otherwise softmax(score / T), of which the
    largest count.
    """

    def __init__(self, options: Any, rules: MixRules) -> None:
        super().__init__(rules)
        self.options = options

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        if not context.rules.names or len(context.everyday) < 2:
            raise RouterError("scoring activations needs an expert to choose, and at least 2 everyday prompts to compare with")
        seen = await gathered(context.probe.activations, context.everyday)
        policy = cls(options, context.rules)
        policy.fit(seen)
        return policy

    @abstractmethod
    def measure(self, activations: Activations) -> Tensor:
        """Returns [experts, sites], NaN where an expert leaves a site alone."""

    @abstractmethod
    def usual(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, [experts, sites], from [prompts, experts, sites]."""

    def sites(self, activations: Activations) -> list[str]:
        """Where to look."""
        return [site for site in activations.sites if site.endswith(self.options.sites or "")]

    def fit(self, everyday: Sequence[Activations]) -> None:
        """Learn what is usual, and the floor. Raises RouterError if an expert reads none of the sites."""
        experts, sites = sorted(self.rules.names), self.sites(everyday[0])
        measured = torch.stack([self._at(a, experts, sites) for a in everyday])
        blind = [name for name, gone in zip(experts, measured[0].isnan().all(1).tolist(), strict=True) if gone]
        if blind:
            known = ", ".join(sorted({".".join(site.split(".")[-2:]) for site in everyday[0].sites}))
            raise RouterError(f"sites: {', '.join(blind)} cannot be scored at any of them; there are sites ending in {known}")
        self._usual = Usual(experts, sites, *self.usual(measured))
        highest = self._usual.scores(measured).max(1).values
        self.floor = float(highest.quantile(_RARE)) if self.options.threshold is None else self.options.threshold

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        usual, activations = self._usual, await probe.activations(prompt.user_turn)
        values = usual.scores(self._at(activations, usual.experts, usual.sites)).tolist()
        scores, highest = dict(zip(usual.experts, values, strict=True)), max(values)
        if highest < self.floor:
            return Selection({}, scores, self.floor, f"best score {highest:.3f} below {self.floor:.3f}")
        shares = softmax(scores, self.options.temperature)
        return Selection(self.chosen(shares), scores, self.floor, f"best score {highest:.3f}")

    def chosen(self, shares: dict[str, float]) -> dict[str, float]:
        return best(shares, self.options.top)

    def _at(self, activations: Activations, experts: Sequence[str], sites: Sequence[str]) -> Tensor:
        rows = [activations.experts.index(name) for name in experts]
        return self.measure(activations)[rows][:, [activations.sites.index(site) for site in sites]]


class ActivationNormPolicy(ActivationSelector):
    """LoGo (arXiv 2511.07129): the size of what each expert would add, at one late layer and the prompt's last token.

        s_k = mean over sites of ||B_k A_k x|| / (its mean over everyday prompts)

    Divided so that no expert wins by its scale alone; x is the layer's input after its norm, as the expert reads it.
    """

    Options = ActivationNormOptions
    keep = 0.1

    def measure(self, activations: Activations) -> Tensor:
        return activations.norm

    def usual(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        mean = measured.mean(0)
        return torch.zeros_like(mean), mean.clamp_min(1e-6)

    def sites(self, activations: Activations) -> list[str]:
        if self.options.sites:
            return super().sites(activations)
        shared = ~self._at(activations, sorted(self.rules.names), activations.sites).isnan().any(0)
        read = [site for site, by_all in zip(activations.sites, shared.tolist(), strict=True) if by_all]
        return ([site for site in read if "att" in site] or read)[-1:]


class SubspacePolicy(ActivationSelector):
    """How much of the states lies in what each expert reads, V_k of B_k A_k = U_k S_k V_k^T, by one of three scores:

        arrow    mean |v_1 . x|               Arrow (Ostapenko et al. 2024, arXiv 2405.11157)
        spectr   mean ||V^T x||               SpectR (Fleshman and Van Durme 2025, arXiv 2504.03454)
        mass     - mean ||x - V V^T x||       MASS (arXiv 2504.05342)

    over the prompt's tokens, each relative to the mean ||x||, so that large states resemble nobody. Standardised by the
    everyday prompts' mean and deviation for each expert and site, then the mean over the sites that the expert reads. Shares
    and their minimum as in MASS; the sum of the coefficients is 1.
    """

    Options = SubspaceOptions
    keep = 0.5  # standard deviations

    def measure(self, activations: Activations) -> Tensor:
        by_name = {"arrow": activations.arrow, "spectr": activations.spectr, "mass": -activations.residual}
        return by_name[self.options.score] / activations.inputs

    def usual(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        return measured.mean(0), measured.std(0).clamp_min(1e-6)

    def chosen(self, shares: dict[str, float]) -> dict[str, float]:
        return best(shares, self.options.top, self.options.minimum) or best(shares, 1)
