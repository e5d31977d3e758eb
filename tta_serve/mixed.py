"""The base in plain transformers with experts mixed in, whose coefficients may be learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapters.coefficient import layer_of
from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError
from adapters.expert import Expert
from adapters.store import check_fit
from tta_serve.early import depth, tokens
from tta_serve.offline import Offline


class Sample(NamedTuple):
    """A prompt and an answer. ids: [1, tokens], without the answer's last token   answer: tokens of the answer"""

    ids: Tensor
    answer: int


class Outputs(NamedTuple):
    """What is predicted for each token of an answer. logits: [answer, vocabulary]   states: [layers + 1, answer, hidden]"""

    logits: Tensor
    states: Tensor


@dataclass(frozen=True)
class Site:
    """All experts' factors of one linear layer, stacked by rank. a: [ranks, in]   b: [out, ranks]   owners: [ranks]"""

    name: str
    module: nn.Linear
    layer: int
    a: Tensor
    b: Tensor
    owners: Tensor


# Of a linear layer and of A x, [1, tokens, ranks], the coefficient of each rank, in a shape that fits the latter's.
Rule = Callable[["Site", Tensor], Tensor]


class Mixed:
    """y = W x + B (c * (A x)) in every linear layer that an expert touches, with c[l, k] of decoder layer l, or by a rule.

    The base's weights stay as they are, and take no gradients. Raises ExpertError for an expert that touches anything else.
    """

    def __init__(self, offline: Offline, experts: Sequence[Expert]) -> None:
        for expert in experts:
            check_fit(LowRankDeltas(expert), offline.base)
        self.offline = offline
        self.experts = tuple(experts)
        self.layers = depth(offline.model)
        self.sites = _sites(offline, experts)
        offline.model.requires_grad_(False)

    def alone(self, expert: int) -> Tensor:
        """The coefficients of one expert as it is. Returns [layers, experts]."""
        only = torch.zeros(self.layers, len(self.experts))
        only[:, expert] = 1
        return only

    @torch.no_grad()
    def sample(self, expert: int, prompt: str, most: int) -> Sample:
        """A prompt with the expert's own greedy answer, of at most `most` tokens; in the chat template if the base has one."""
        model, chat = self.offline.model, self.offline.tokenizer.chat_template is not None
        ids = token = tokens(self.offline, prompt, chat=chat)
        start, cache, ends = ids.shape[1], None, _ends(model)
        with self._added(self.alone(expert)):
            for _ in range(most):
                output = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
                token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
                ids = torch.cat([ids, token], 1)
                if int(token) in ends:
                    break
        return Sample(ids[:, :-1], ids.shape[1] - start)

    def outputs(self, sample: Sample, coefficients: Tensor | Rule) -> Outputs:
        """What the base with the experts predicts for the answer. coefficients: [layers, experts]"""
        with self._added(coefficients):
            output = self.offline.model(sample.ids, use_cache=False, output_hidden_states=True, logits_to_keep=sample.answer)
        return Outputs(output.logits[0], torch.stack([s[0, -sample.answer :] for s in output.hidden_states]))

    @contextmanager
    def _added(self, coefficients: Tensor | Rule) -> Iterator[None]:
        hooks = [site.module.register_forward_hook(_adder(site, coefficients)) for site in self.sites]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _adder(site: Site, coefficients: Tensor | Rule) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    fixed = coefficients[site.layer][site.owners] if isinstance(coefficients, Tensor) else coefficients

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        h = inputs[0] @ site.a.T
        scale = fixed if isinstance(fixed, Tensor) else fixed(site, h)
        return output + (h * scale) @ site.b.T

    return add


def _sites(offline: Offline, experts: Sequence[Expert]) -> list[Site]:
    linear = {name: module for name, module in offline.model.named_modules() if isinstance(module, nn.Linear)}
    found = []
    for name in dict.fromkeys(name for expert in experts for name in expert.factors):
        layer = layer_of(name)
        if name not in linear or layer is None:
            raise ExpertError(f"{name} is no linear layer in a decoder layer of {offline.base.folder}")
        own = [(k, expert.factors[name]) for k, expert in enumerate(experts) if name in expert.factors]
        owners = torch.cat([torch.full((factor.rank,), k) for k, factor in own])
        a, b = torch.cat([factor.a for _, factor in own]), torch.cat([factor.b for _, factor in own], 1)
        found.append(Site(name, linear[name], layer, a.float(), b.float(), owners))
    return found


def _ends(model: Any) -> set[int]:
    """The tokens that end an answer."""
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, list) else {end}
