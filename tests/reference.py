"""The slow, obvious maths: plain transformers, float32, dense merged weights."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM

from adapters.bank.layer_gates import Gates, LayerGate
from adapters.bank.token_gating import Gating, Score
from adapters.coefficient import Coefficient, Pair
from adapters.deltas import Deltas
from adapters.expert import Expert
from adapters.mix import Mix

Name = TypeVar("Name")


class Reference:
    """The base model in transformers.

    `merged` adds sum_k c_k B_k A_k to its weights for the length of a block.
    """

    def __init__(self, base: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self._read: dict[tuple[str, str], torch.Tensor] = {}

    @contextmanager
    def merged(
        self, experts: Mapping[str, Expert], coefficients: Mapping[str, Coefficient]
    ) -> Iterator[None]:
        changed: dict[str, torch.Tensor] = {}
        for name, c in coefficients.items():
            for module, factor in experts[name].factors.items():
                weight = self.model.get_submodule(module).weight
                changed.setdefault(module, weight.data.clone())
                weight.data += number_at(c, module) * factor.dense()
        try:
            yield
        finally:
            for module, original in changed.items():
                self.model.get_submodule(module).weight.data.copy_(original)

    @contextmanager
    def changed(
        self, experts: Mapping[str, Deltas], coefficients: Mapping[str, Coefficient]
    ) -> Iterator[None]:
        """Adds sum_k c_k D_k to the weights meanwhile, of experts of any form."""
        saved = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        with torch.no_grad():
            for name, c in coefficients.items():
                for weight in experts[name].shapes:
                    number = number_at(c, weight.rpartition(".")[0])
                    self.model.get_parameter(weight).add_(number * experts[name].delta(weight))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(saved[name])

    @contextmanager
    def per_token(
        self,
        experts: Mapping[str, Expert],
        coefficients: Callable[[str, str, torch.Tensor], torch.Tensor],
    ) -> Iterator[None]:
        """Adds sum_k c_k(t) B_k A_k x_t to each module's output meanwhile.

        Args:
            coefficients: Of an expert at a module, from the module's inputs [tokens, in]: [tokens].
                A token embedding is the linear layer that it is of one-hot inputs.
        """

        def add(module: str) -> Callable[..., torch.Tensor]:
            def hook(_: object, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
                x = self._linear_input(module, inputs[0][0])
                for name, expert in experts.items():
                    if module in expert.factors:
                        delta = x @ self._linear_delta(expert, module).t()
                        y = y + coefficients(name, module, x)[:, None] * delta
                return y

            return hook

        modules = {module for expert in experts.values() for module in expert.factors}
        hooks = [self.model.get_submodule(m).register_forward_hook(add(m)) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def in_parts(
        self, experts: Mapping[str, Expert], parts: Sequence[tuple[int, Mix]]
    ) -> AbstractContextManager[None]:
        """As `per_token`, with a mix from each of some tokens on; the base before the first."""
        used = [(start, mix.as_dict()) for start, mix in parts]

        def coefficients(name: str, module: str, x: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(len(x))
            for start, mix in used:
                found[start:] = number_at(mix[name], module) if name in mix else 0.0
            return found

        names = {name for _, mix in used for name in mix}
        return self.per_token({name: experts[name] for name in names}, coefficients)

    @contextmanager
    def gated(
        self,
        experts: Mapping[str, Expert],
        candidates: Mapping[str, Coefficient],
        gating: Gating,
        since: int = 0,
        gates: Gates = MappingProxyType({}),
    ) -> Iterator[None]:
        """As `per_token`, with each token's shares of the experts that have a coefficient there,
        from token `since` on.
        """

        def coefficients(name: str, module: str, x: torch.Tensor) -> torch.Tensor:
            there = [
                n
                for n in candidates
                if module in experts[n].factors and number_at(candidates[n], module)
            ]
            own = {n: gates.get(experts[n].digest, {}).get(module) for n in there}
            shares = gated_shares(
                {n: self._reads(experts[n], module) for n in there}, gating, x, own
            )
            return shares.get(name, torch.zeros(len(x))) * (torch.arange(len(x)) >= since)

        with self.per_token({name: experts[name] for name in candidates}, coefficients):
            yield

    def used(
        self,
        experts: Mapping[str, Expert],
        mix: Mapping[str, Coefficient],
        gating: Gating | None,
        since: int = 0,
        gates: Gates = MappingProxyType({}),
    ) -> AbstractContextManager[None]:
        """`gated`, or `merged` without a gating."""
        return (
            self.gated(experts, mix, gating, since, gates) if gating else self.merged(experts, mix)
        )

    def _reads(self, expert: Expert, module: str) -> torch.Tensor:
        key = expert.digest, module
        if key not in self._read:
            self._read[key] = read(self._linear_delta(expert, module))
        return self._read[key]

    def _linear_input(self, module: str, x: torch.Tensor) -> torch.Tensor:
        """What a module reads: an embedding, of each token, 1 at the token and 0 elsewhere."""
        layer = self.model.get_submodule(module)
        if not isinstance(layer, torch.nn.Embedding):
            return x
        return torch.nn.functional.one_hot(x, layer.num_embeddings).float()

    def _linear_delta(self, expert: Expert, module: str) -> torch.Tensor:
        """The delta of what multiplies `_linear_input`. [out, in]"""
        is_embedding = isinstance(self.model.get_submodule(module), torch.nn.Embedding)
        dense = expert.factors[module].dense()
        return dense.t() if is_embedding else dense

    def inputs(self, module: str, tokens: list[int]) -> torch.Tensor:
        """What the base gives a module for a prompt. [tokens, in]"""
        seen: list[torch.Tensor] = []
        hook = self.model.get_submodule(module).register_forward_pre_hook(
            lambda _, args: seen.append(args[0][0])
        )
        self.logprobs(tokens, tokens[:1])
        hook.remove()
        return seen[0][: len(tokens)]

    def logprobs(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Log-probabilities of every token at each position of the answer.

        Returns [answer, vocabulary].
        """
        return answer_logprobs(self.model, prompt, answer)


def read(delta: torch.Tensor) -> torch.Tensor:
    """Right singular vectors of a dense delta, the first of the largest value.

    Returns [rank, in], float64
    """
    _, s, vt = torch.linalg.svd(delta.double(), full_matrices=False)
    directions: torch.Tensor = vt[s > 1e-6 * s[0]]
    return directions


def gated_shares(
    candidates: Mapping[Name, torch.Tensor],
    gating: Gating,
    x: torch.Tensor,
    gates: Mapping[Name, LayerGate | None],
) -> dict[Name, torch.Tensor]:
    """Shares of one weight, token by token.

    Args:
        candidates: By name, what each reads.
        x: [tokens, in].

    Returns [tokens] each
    """
    found = {name: torch.zeros(len(x)) for name in candidates}
    for t, token in enumerate(x.double()):
        along = {name: vt @ token for name, vt in candidates.items()}
        scores = {name: _score(h, gating.score, gates.get(name)) for name, h in along.items()}
        best = sorted(scores, key=lambda name: -scores[name])[: gating.top]
        powers = {
            name: math.exp(scores[name] / gating.temperature) if gating.temperature else 1.0
            for name in best
        }
        for name, power in powers.items():
            found[name][t] = power / sum(powers.values())
    return found


def _score(h: torch.Tensor, score: Score, gate: LayerGate | None) -> float:
    if score == "trained" and gate is not None:
        return (
            math.sqrt(sum(float(g) * float(value) ** 2 for g, value in zip(gate.g, h, strict=True)))
            + gate.d
        )
    return float(h[0].abs() if score == "arrow" else h.norm())


def number_at(coefficient: Coefficient, module: str) -> float:
    """The coefficient of one module, `model.layers.<layer>.<self_attn or mlp>.<name>`.

    The token embedding has that of the first attention, the output head and the last norm that of
    the last MLP; the norm before an attention has the attention's, other norms the MLP's.
    """
    parts = module.split(".")
    if "layers" in parts:
        layer, attends = int(parts[2]), parts[3] in ("self_attn", "input_layernorm")
    else:
        attends = parts[-1] == "embed_tokens"
        layer = 0 if attends else -1
    if isinstance(coefficient, Pair):
        coefficient = coefficient.attention if attends else coefficient.mlp
    return coefficient[layer] if isinstance(coefficient, tuple) else coefficient


@torch.no_grad()
def answer_logprobs(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([[*prompt, *answer]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)
