"""Policies by the weights of the experts: whose inputs are the base's own states?"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from adapters.mix import MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policies.selector import Selection, Selector
from router.policy import Context, Options
from router.probing import Activations, Probe, gather_all
from router.scoring.shares import keep_best, softmax

_RARE = 0.95  # so much of the everyday prompts scores below the floor


class ActivationOptions(Options):
    """Options of `activation_norm` and `subspace`."""

    top: int = Field(3, ge=1)
    """How many experts a mix has at most."""
    temperature: float = Field(1.0, gt=0)
    """T of the softmax over scores."""
    threshold: float | None = None
    """The floor, instead of the calibrated one."""
    sites: str | None = Field(None, min_length=1)
    """Only sites whose name ends so are looked at."""


class ActivationNormOptions(ActivationOptions):
    """Options of `activation_norm`.

    Without `sites` it looks at the last attention input that every expert reads.
    """


class SubspaceOptions(ActivationOptions):
    """Options of `subspace`.

    Without `sites` it looks at all of them.
    """

    score: Literal["arrow", "spectr", "mass"] = "spectr"
    """Which measure, see the policy."""
    minimum: float = Field(0.2, ge=0, lt=1)
    """Shares up to it are left out, unless all are."""


@dataclass(frozen=True)
class Usual:
    """What everyday prompts measure, for each expert and site."""

    experts: list[str]
    """The names of the rows."""
    sites: list[str]
    """The names of the columns."""
    shift: Tensor
    """[experts, sites], what to take away; NaN where there is nothing."""
    scale: Tensor
    """[experts, sites], what to divide by."""

    def score(self, measured: Tensor) -> Tensor:
        """Return the mean over an expert's sites of (measured - shift) / scale, [..., experts].

        Args:
            measured: [..., experts, sites].
        """
        return ((measured - self.shift) / self.scale).nanmean(-1)


class ActivationSelector(Selector):
    """A selector that scores experts relative to what everyday prompts measure.

    It abstains where 95 % of the everyday prompts would have scored lower. Otherwise shares are
    softmax(score / T), of which the largest count. Nothing but everyday prompts is needed, no
    example of what an expert is for.
    """

    forms = frozenset({"low_rank"})  # whose factors say what an expert reads

    def __init__(self, options: Any, rules: MixRules) -> None:
        super().__init__(rules)
        self.options = options

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        if not context.rules.classes or len(context.everyday) < 2:
            raise RouterError(
                "scoring activations needs an expert to choose, and at least 2 everyday prompts to"
                " compare with"
            )
        seen = await gather_all(context.probe.activations, context.everyday)
        policy = cls(options, context.rules)
        policy.fit(seen)
        return policy

    @abstractmethod
    def measure(self, activations: Activations) -> Tensor:
        """Return the measure, [experts, sites], NaN where an expert leaves a site alone."""

    @abstractmethod
    def learn_usual(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale, [experts, sites] each, of [prompts, experts, sites]."""

    def choose_sites(self, activations: Activations) -> list[str]:
        """Return the sites to look at."""
        return [site for site in activations.sites if site.endswith(self.options.sites or "")]

    def fit(self, everyday: Sequence[Activations]) -> None:
        """Learn what is usual, and the floor.

        Raises:
            RouterError: An expert reads none of the sites.
        """
        experts = sorted(self.rules.classes)
        sites = self.choose_sites(everyday[0])
        measured = torch.stack([self._measure_at(a, experts, sites) for a in everyday])
        _check_all_read(experts, measured[0], everyday[0].sites)
        self._usual = Usual(experts, sites, *self.learn_usual(measured))
        highest = self._usual.score(measured).max(1).values
        given = self.options.threshold
        self.floor = float(highest.quantile(_RARE)) if given is None else given

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        usual = self._usual
        activations = await probe.activations(prompt.user_turn)
        values = usual.score(self._measure_at(activations, usual.experts, usual.sites)).tolist()
        scores = dict(zip(usual.experts, values, strict=True))
        highest = max(values)
        if highest < self.floor:
            reason = f"best score {highest:.3f} below {self.floor:.3f}"
            return Selection({}, scores, self.floor, reason)

        shares = softmax(scores, self.options.temperature)
        return Selection(
            self.choose_shares(shares), scores, self.floor, f"best score {highest:.3f}"
        )

    def choose_shares(self, shares: dict[str, float]) -> dict[str, float]:
        """Return the shares that count, of sum 1."""
        return keep_best(shares, self.options.top)

    def _measure_at(
        self, activations: Activations, experts: Sequence[str], sites: Sequence[str]
    ) -> Tensor:
        rows = [activations.experts.index(name) for name in experts]
        return self.measure(activations)[rows][:, [activations.sites.index(site) for site in sites]]


def _check_all_read(experts: Sequence[str], measured: Tensor, sites: Sequence[str]) -> None:
    """Raise RouterError if there is an expert without any measure.

    Args:
        experts: The names of the rows.
        measured: [experts, sites], of the sites that are looked at.
        sites: All sites there are.
    """
    nothing = measured.isnan().all(1).tolist()
    blind = [name for name, gone in zip(experts, nothing, strict=True) if gone]
    if blind:
        known = ", ".join(sorted({".".join(site.split(".")[-2:]) for site in sites}))
        raise RouterError(
            f"sites: {', '.join(blind)} cannot be scored at any of them; there are sites ending"
            f" in {known}"
        )


class ActivationNormPolicy(ActivationSelector):
    """LoGo (arXiv 2511.07129): the size of what each expert would add, late and at the last token.

        s_k = mean over sites of ||B_k A_k x|| / (its mean over everyday prompts)

    By default it looks at one late layer. It divides so that no expert wins by its scale alone; x
    is the layer's input after its norm, as the expert reads it.
    """

    Options = ActivationNormOptions
    keep = 0.1

    def measure(self, activations: Activations) -> Tensor:
        return activations.norm

    def learn_usual(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        mean = measured.mean(0)
        return torch.zeros_like(mean), mean.clamp_min(1e-6)

    def choose_sites(self, activations: Activations) -> list[str]:
        if self.options.sites:
            return super().choose_sites(activations)
        shared = ~self._measure_at(
            activations, sorted(self.rules.classes), activations.sites
        ).isnan().any(0)
        read = [
            site for site, by_all in zip(activations.sites, shared.tolist(), strict=True) if by_all
        ]
        return ([site for site in read if "att" in site] or read)[-1:]


class SubspacePolicy(ActivationSelector):
    """How much of the states lies in what each expert reads, by one of three scores.

    With V_k of the thin SVD B_k A_k = U_k S_k V_k^T, over the prompt's tokens:

        arrow    mean |v_1 . x|               Arrow (Ostapenko et al. 2024, arXiv 2405.11157)
        spectr   mean ||V^T x||               SpectR (Fleshman and Van Durme 2025, arXiv 2504.03454)
        mass     - mean ||x - V V^T x||       MASS (arXiv 2504.05342)

    Each is relative to the mean ||x||, so that large states resemble nobody, then standardised by
    the everyday prompts' mean and deviation for each expert and site, then the mean over the sites
    that the expert reads. Shares and their minimum as in MASS; the sum of the coefficients is 1.
    """

    Options = SubspaceOptions
    keep = 0.5  # standard deviations

    def measure(self, activations: Activations) -> Tensor:
        by_name = {
            "arrow": activations.arrow,
            "spectr": activations.spectr,
            "mass": -activations.residual,
        }
        return by_name[self.options.score] / activations.inputs

    def learn_usual(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        return measured.mean(0), measured.std(0).clamp_min(1e-6)

    def choose_shares(self, shares: dict[str, float]) -> dict[str, float]:
        return keep_best(shares, self.options.top, self.options.minimum) or keep_best(shares, 1)
