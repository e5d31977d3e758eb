"""The slow, obvious maths: plain transformers, float32, dense merged weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from adapters.coefficient import Coefficient, Pair
from adapters.expert import Expert


class Reference:
    """The base model in transformers. `merged` adds sum_k c_k B_k A_k to its weights for the length of a block."""

    def __init__(self, base: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

    @contextmanager
    def merged(self, experts: Mapping[str, Expert], coefficients: Mapping[str, Coefficient]) -> Iterator[None]:
        changed: dict[str, torch.Tensor] = {}
        for name, c in coefficients.items():
            for module, factor in experts[name].factors.items():
                weight = self.model.get_submodule(module).weight
                changed.setdefault(module, weight.data.clone())
                weight.data += _at(c, module) * factor.dense()
        try:
            yield
        finally:
            for module, original in changed.items():
                self.model.get_submodule(module).weight.data.copy_(original)

    def logprobs(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Log-probabilities of every token at each position of the answer. Returns [answer, vocabulary]."""
        return answer_logprobs(self.model, prompt, answer)


def _at(coefficient: Coefficient, module: str) -> float:
    """The coefficient of one module, `model.layers.<layer>.<self_attn or mlp>.<name>`."""
    _, _, layer, half, *_ = module.split(".")
    if isinstance(coefficient, Pair):
        return coefficient.attention if half == "self_attn" else coefficient.mlp
    return coefficient[int(layer)] if isinstance(coefficient, tuple) else coefficient


@torch.no_grad()
def answer_logprobs(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)
