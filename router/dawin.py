"""dawin: the experts that are surest of what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from router.blend import blend
from router.comparison import BASE, ComparedOptions, ComparedPolicy, ScoredWindow, WindowOptions, at_home, told
from router.policy import Context, Decision, Outputs, Prompt, RouterError, Selection


class DawinOptions(ComparedOptions):
    """kappa: of the base's and the experts' shares, how much the experts get   offset: DaWin's, see the policy

    calibrate_on: example prompts an expert from which its temperature and offset come; 0 leaves all temperatures at 1
    """

    window: ScoredWindow = WindowOptions()
    kappa: float = Field(1.0, gt=0)
    offset: bool = False
    calibrate_on: int = Field(8, ge=0)

    @field_validator("calibrate_on")
    @classmethod
    def _enough(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("offset") and value < 2:
            raise ValueError("an offset is calibrated; give it 2 prompts or more")
        return value


@dataclass(frozen=True)
class Habit:
    """A model's entropies on prompts it should know. temperature: divides them   mean, deviation: once divided"""

    temperature: float = 1.0
    mean: float = 1.0
    deviation: float = 0.0

    @classmethod
    def of(cls, entropy: Tensor, nll: Tensor) -> "Habit":
        """Both [prompts], nats. The temperature makes the mean entropy what a calibrated model's is, its mean loss."""
        temperature = float((entropy.mean() / nll.nanmean()).clamp(0.1, 10.0))
        return cls(temperature, float(entropy.mean()) / temperature, float(entropy.std()) / temperature)


class DawinPolicy(ComparedPolicy):
    """Coefficients by entropy, of the base (0) and the m experts of the shortlist:

        e_k = exp(-H_k / T_k)      c_k = kappa (e_k + b a_k) / (sum_(j = 0 ... m) e_j + b)      H_k: mean entropy, nats

    The base's share stays with the base. Without offset b = 0, which for one expert is DaWin's e_1 / (e_0 + e_1). With offset
    b is the mean over the models of std(H_k) / mean(H_k), and a_k = (1 / mean H_k) / sum_j (1 / mean H_j): for one expert
    (e_1 + b / w) / (e_0 + e_1 + b) with w = (mean H_0 + mean H_1) / mean H_0, as in DaWin's code.

    Its temperatures divide logits; here, where only entropies arrive, T_k = mean H_k / mean NLL_k on the expert's examples
    (the base's: on everybody's), for the entropy stands in for that loss. Uncalibrated, experts are surer than the base
    whatever the prompt. Scores: the shares c_k / kappa; the floor is the base's.

    DaWin (Oh et al. 2024, arXiv 2410.03782).
    """

    Options = DawinOptions
    keep = 0.05  # of the shares' sum of 1

    async def calibrate(self, context: Context) -> None:
        options: DawinOptions = self.options
        if options.kappa > context.rules.maximum:
            raise RouterError(f"kappa is {options.kappa}, but a coefficient may be {context.rules.maximum} at most")
        self.habits = dict.fromkeys([BASE, *context.rules.names], Habit())
        if options.calibrate_on:
            home = await at_home(context, options.window.of_tokens(), options.calibrate_on)
            self.habits = {name: _habit(found, 1) for name, found in home.items()}
            self.habits[BASE] = _habit([o for found in home.values() for o in found], 0)

    async def weigh(self, prompt: Prompt, shares: Mapping[str, float], selection: Selection, outputs: Outputs) -> Decision:
        names = [BASE, *shares]
        sure = self.sure([self.habits[name] for name in names], outputs.entropy)
        scores = dict(zip(names, sure.tolist(), strict=True))
        floor = scores.pop(BASE)
        mix = blend({name: self.options.kappa * share for name, share in scores.items()}, self.rules)
        return Decision(mix, scores, mix.is_base, told("entropy", names, outputs.entropy.tolist()), floor)

    def sure(self, habits: list[Habit], entropy: Tensor) -> Tensor:
        """The shares of sum 1 of the base and the experts. entropy: [1 + m]. Returns [1 + m]."""
        e = (-entropy / torch.tensor([h.temperature for h in habits])).exp()
        if not self.options.offset:
            return e / e.sum()
        mean, deviation = torch.tensor([h.mean for h in habits]), torch.tensor([h.deviation for h in habits])
        b, a = (deviation / mean).mean(), (1 / mean) / (1 / mean).sum()
        return (e + b * a) / (e.sum() + b)


def _habit(found: list[Outputs], row: int) -> Habit:
    return Habit.of(torch.stack([o.entropy[row] for o in found]), torch.stack([o.nll[row] for o in found]))
