"""prompt_nll: the experts that find the prompt itself least surprising."""

from collections.abc import Mapping

from pydantic import Field

from adapters.mix import Mix
from router.decision import Decision
from router.policies.comparison import (
    BASE,
    ComparedOptions,
    ComparedPolicy,
    ScoredWindow,
    WindowOptions,
    describe,
)
from router.policies.selector import Selection
from router.probing import Outputs
from router.scoring.blend import blend
from router.scoring.shares import softmax


class PromptNllOptions(ComparedOptions):
    """Options of `prompt_nll`."""

    window: ScoredWindow = WindowOptions()
    """Over which tokens the likelihood is taken."""
    temperature: float = Field(0.5, gt=0)
    """T of the softmax, in nats a token; PackLLM's is 1."""


class PromptNllPolicy(ComparedPolicy):
    """Coefficients by likelihood, of the base (0) and the experts of the shortlist.

        c_k = exp(-NLL_k / T) / sum_(j = 0 ...) exp(-NLL_j / T)
        NLL_k: mean of -log p_k(x_(t+1) | x_(<=t)), nats a token

    The base's share stays with the base; it abstains where nothing else is left on the grid. A
    draft is the base's own choice and speaks for it. Scores: -NLL_k; the floor is the base's.

    PackLLM (Mavromatis et al. 2024, arXiv 2404.11531) mixes outputs so; FlexOlmo (Shi et al. 2025,
    arXiv 2507.07024) weights.
    """

    Options = PromptNllOptions
    keep = 0.05  # nats a token

    def weigh(
        self, shares: Mapping[str, float], selection: Selection, outputs: Outputs
    ) -> Decision:
        if not bool(outputs.nll.isfinite().all()):
            return Decision(
                Mix(), abstained=True, reason="a prompt of one token: none of it can be predicted"
            )
        names = [BASE, *shares]
        nll = outputs.nll.tolist()
        scores = {name: -value for name, value in zip(names, nll, strict=True)}
        weights = softmax(scores, self.options.temperature)
        del weights[BASE]
        mix = blend(weights, self.rules)
        floor = scores.pop(BASE)
        return Decision(mix, scores, mix.is_base, describe("nll a token", names, nll), floor)
