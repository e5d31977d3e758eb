"""dawin: the experts that are surest of what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from router.decision import Decision
from router.errors import RouterError
from router.policies.comparison import (
    BASE,
    ComparedOptions,
    ComparedPolicy,
    ScoredWindow,
    WindowOptions,
    compare_at_home,
    describe,
)
from router.policies.selector import Selection
from router.policy import Context
from router.probing import Outputs
from router.scoring.blend import blend


class DawinOptions(ComparedOptions):
    """Options of `dawin`."""

    window: ScoredWindow = WindowOptions()
    """Over which tokens entropy and loss are taken."""
    kappa: float = Field(1.0, gt=0)
    """How much of their shares the experts get as coefficients."""
    offset: bool = False
    """Whether to add DaWin's offset b, see the policy."""
    calibrate_on: int = Field(8, ge=0)
    """So many example prompts an expert give temperature and offset; 0 leaves all temperatures at
    1."""

    @field_validator("calibrate_on")
    @classmethod
    def _enough(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("offset") and value < 2:
            raise ValueError("an offset is calibrated; give it 2 prompts or more")
        return value


@dataclass(frozen=True)
class Habit:
    """How sure a model is on prompts that it should know."""

    temperature: float = 1.0
    """T, by which its entropies are divided."""
    mean: float = 1.0
    """The mean of its entropies, divided by T."""
    deviation: float = 0.0
    """Their standard deviation, divided by T."""

    @classmethod
    def of(cls, entropy: Tensor, nll: Tensor) -> "Habit":
        """Return the habit of one model.

        The temperature makes the mean entropy what a calibrated model's is, its mean loss.

        Args:
            entropy: [prompts], nats.
            nll: [prompts], nats.
        """
        temperature = float((entropy.mean() / nll.nanmean()).clamp(0.1, 10.0))
        return cls(
            temperature, float(entropy.mean()) / temperature, float(entropy.std()) / temperature
        )


class DawinPolicy(ComparedPolicy):
    """Coefficients by entropy, of the base (0) and the m experts of the shortlist.

        e_k = exp(-H_k / T_k)          H_k: mean entropy, nats
        c_k = kappa (e_k + b a_k) / (sum_(j = 0 ... m) e_j + b)

    The base's share stays with the base. Without offset b = 0, which for one expert is DaWin's e_1
    / (e_0 + e_1). With offset b is the mean over the models of std(H_k) / mean(H_k), and a_k = (1 /
    mean H_k) / sum_j (1 / mean H_j): for one expert (e_1 + b / w) / (e_0 + e_1 + b) with w = (mean
    H_0 + mean H_1) / mean H_0, as in DaWin's code.

    Its temperatures divide logits; here, where only entropies arrive, T_k = mean H_k / mean NLL_k
    on the expert's examples (the base's: on everybody's), for the entropy stands in for that loss.
    Uncalibrated, experts are surer than the base whatever the prompt. Scores: the shares c_k /
    kappa; the floor is the base's.

    DaWin (Oh et al. 2024, arXiv 2410.03782).
    """

    Options = DawinOptions
    keep = 0.05  # of the shares' sum of 1

    async def calibrate(self, context: Context) -> None:
        options: DawinOptions = self.options
        if options.kappa > context.rules.maximum:
            raise RouterError(
                f"kappa is {options.kappa}, but a coefficient may be {context.rules.maximum} at"
                " most"
            )
        self.habits = dict.fromkeys([BASE, *context.rules.classes], Habit())
        if options.calibrate_on:
            home = await compare_at_home(context, options.window.to_window(), options.calibrate_on)
            self.habits = {name: _measure_habit(found, 1) for name, found in home.items()}
            self.habits[BASE] = _measure_habit([o for found in home.values() for o in found], 0)

    def weigh(
        self, shares: Mapping[str, float], selection: Selection, outputs: Outputs
    ) -> Decision:
        names = [BASE, *shares]
        found = self.share([self.habits[name] for name in names], outputs.entropy)
        scores = dict(zip(names, found.tolist(), strict=True))
        floor = scores.pop(BASE)

        coefficients = {name: self.options.kappa * share for name, share in scores.items()}
        mix = blend(coefficients, self.rules)
        reason = describe("entropy", names, outputs.entropy.tolist())
        return Decision(mix, scores, mix.is_base, reason, floor)

    def share(self, habits: list[Habit], entropy: Tensor) -> Tensor:
        """Return the shares of the base and the experts, [1 + m], of sum 1.

        Args:
            habits: Of the base, then of the experts.
            entropy: [1 + m], of the prompt, in the same order.
        """
        e = (-entropy / torch.tensor([h.temperature for h in habits])).exp()
        if not self.options.offset:
            return e / e.sum()
        mean = torch.tensor([h.mean for h in habits])
        deviation = torch.tensor([h.deviation for h in habits])
        b = (deviation / mean).mean()
        a = (1 / mean) / (1 / mean).sum()
        return (e + b * a) / (e.sum() + b)


def _measure_habit(found: list[Outputs], row: int) -> Habit:
    """Return the habit of the model in one row of several outputs."""
    return Habit.of(
        torch.stack([o.entropy[row] for o in found]), torch.stack([o.nll[row] for o in found])
    )
