"""The base in plain transformers with experts mixed in, whose coefficients may be learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from adapters.coefficient import layer_of, place_of
from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.library.versions import check_fit
from adapters.low_rank import make_canonical
from adapters.mix import MixRules
from tta_serve.offline.answered_prompts import AnsweredPrompt, answer_greedily
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.features import count_layers


class Sample(NamedTuple):
    """A prompt and an answer."""

    ids: Tensor
    """[1, tokens], without the answer's last token."""
    answer: int
    """How many tokens the answer has."""


class AnswerOutputs(NamedTuple):
    """What is predicted for each token of an answer."""

    logits: Tensor
    """[answer, vocabulary]."""
    states: Tensor
    """[layers + 1, answer, hidden]."""


@dataclass(frozen=True)
class Site:
    """All experts' factors of one linear layer, stacked by rank.

    The token embedding is one too, as the linear layer that it is of one-hot inputs, whose weight
    is the transpose of the embedding's.
    """

    name: str
    """The layer's weight."""
    module: nn.Linear | nn.Embedding
    """The layer itself."""
    layer: int
    """The decoder layer that it is in, or next to: the first one's for the token embedding, the
    last one's for the output head."""
    half: int
    """0 where it has the coefficient of attention, as the token embedding has, 1 for the MLP's."""
    a: Tensor
    """[ranks, in]."""
    b: Tensor
    """[out, ranks]."""
    owners: Tensor
    """[ranks], the number of the expert that each rank is of."""


Rule = Callable[["Site", Tensor], Tensor]
"""Makes, of a linear layer and A x, [1, tokens, ranks], the coefficient of each rank, shaped to
fit."""


class MixedModel:
    """The base with experts added to its layers, mixed by coefficients.

    In every linear layer that an expert touches, and at either end of a base whose ends are two
    weights, y = W x + B (c * (A x)), with c[l, k] of decoder layer l and expert k, or c[l, h, k] of
    its half h, or c by a rule.
    The base's weights stay as they are, and take no gradients.

    Raises:
        ExpertError: An expert touches anything else.
    """

    def __init__(self, plain: PlainModel, experts: Sequence[Expert]) -> None:
        for expert in experts:
            check_fit(LowRankDeltas(expert), plain.base)
        self.plain = plain
        self.experts = tuple(experts)
        self.layers = count_layers(plain.model)
        self.sites = _sites(plain, experts)
        plain.model.requires_grad_(False)

    @property
    def rules(self) -> MixRules:
        """What coefficients of these experts may be."""
        return MixRules(frozenset(expert.name for expert in self.experts), self.layers)

    def isolate(self, expert: int) -> Tensor:
        """Return the coefficients of one expert as it is, [layers, experts]."""
        only = torch.zeros(self.layers, len(self.experts))
        only[:, expert] = 1
        return only

    def make_sample(self, expert: int, prompt: str, most: int) -> Sample:
        """Return a prompt with an expert's own greedy answer.

        The prompt is in the chat template if the base has one.

        Args:
            expert: The expert's number.
            prompt: The user's words.
            most: How many tokens the answer has at most.
        """
        with self._add(self.isolate(expert)):
            answered = answer_greedily(self.plain, prompt, most)
        return Sample(answered.ids, len(answered.wanted))

    def predict(self, sample: Sample, coefficients: Tensor | Rule) -> AnswerOutputs:
        """Return what the base with the experts predicts for the answer.

        Args:
            sample: The prompt and the answer.
            coefficients: [layers, experts], or [layers, 2, experts] for attention and MLP, or a
                rule.
        """
        with self._add(coefficients):
            output = self.plain.model(
                sample.ids, use_cache=False, output_hidden_states=True, logits_to_keep=sample.answer
            )
        states = [state[0, -sample.answer :] for state in output.hidden_states]
        return AnswerOutputs(output.logits[0], torch.stack(states))

    def compute_loss(self, answered: AnsweredPrompt, coefficients: Tensor | Rule) -> Tensor:
        """Return the mean of -log p over the tokens of an answer, nats.

        Args:
            answered: The prompt and the answer.
            coefficients: As `predict` takes them.
        """
        sample = Sample(answered.ids, len(answered.wanted))
        return cross_entropy(self.predict(sample, coefficients).logits, answered.wanted)

    @contextmanager
    def _add(self, coefficients: Tensor | Rule) -> Iterator[None]:
        """Add the experts to the base meanwhile."""
        hooks = [
            site.module.register_forward_hook(_adder(site, coefficients)) for site in self.sites
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _adder(
    site: Site, coefficients: Tensor | Rule
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Return a hook of the site's layer that adds the experts to its output."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        is_embedding = isinstance(site.module, nn.Embedding)
        h = embedding(inputs[0], site.a.T) if is_embedding else inputs[0] @ site.a.T
        if isinstance(coefficients, Tensor):
            row = coefficients[site.layer]
            scale = (row if row.dim() == 1 else row[site.half])[site.owners]
        else:
            scale = coefficients(site, h)
        return output + (h * scale) @ site.b.T

    return add


def _sites(plain: PlainModel, experts: Sequence[Expert]) -> list[Site]:
    layers = _find_layers(plain)
    found = []
    for name in dict.fromkeys(name for expert in experts for name in expert.factors):
        if name not in layers:
            raise ExpertError(
                f"{name} is no linear layer in a decoder layer of {plain.base.folder}, nor a token"
                " embedding or an output head that are two weights"
            )
        module, layer = layers[name]
        own = [
            (k, _turn(expert.factors[name], module))
            for k, expert in enumerate(experts)
            if name in expert.factors
        ]
        owners = torch.cat([torch.full((factor.rank,), k) for k, factor in own])
        a = torch.cat([factor.a for _, factor in own])
        b = torch.cat([factor.b for _, factor in own], 1)
        half = int(place_of(f"{name}.weight").kind == "mlp")
        found.append(Site(name, module, layer, half, a.float(), b.float(), owners))
    return found


def _find_layers(plain: PlainModel) -> dict[str, tuple[nn.Linear | nn.Embedding, int]]:
    """Return what experts may touch, and the decoder layer whose coefficients it has, by name."""
    model: Any = plain.model
    ends = {model.get_input_embeddings(): 0, model.get_output_embeddings(): count_layers(model) - 1}
    if model.config.get_text_config().tie_word_embeddings:
        ends = {}
    found = {}
    for name, module in model.named_modules():
        layer = ends.get(module, layer_of(name))
        if isinstance(module, nn.Linear | nn.Embedding) and layer is not None:
            found[name] = module, layer
    return found


def _turn(factor: LowRank, module: nn.Module) -> LowRank:
    """Return the factors of the linear layer that a module is."""
    if not isinstance(module, nn.Embedding):
        return factor
    return make_canonical(LowRank(factor.b.t(), factor.a.t()))
