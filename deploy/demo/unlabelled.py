"""How well experts without example prompts are routed: `python -m deploy.demo unlabelled`.

What people ask who pin an expert stands for its examples: lines of voices/speakers.jsonl, each of
another person. The voices of `voices/train` are routed by what is learned from those, as
`retrieval` does it, beside what there is with examples, and without anything: by the experts'
weights alone, as `subspace` does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.expert import Expert, LowRank
from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from adapters.low_rank import make_canonical
from adapters.mix import Mix, MixRules
from deploy.demo.base import ensure_base
from deploy.demo.everyday import read_everyday
from deploy.demo.model import EXPERTS
from deploy.demo.strangers import NAMES, NONE, RoutingRow, judge_choice
from deploy.demo.voices import NEAR_MISS, SPEAKERS, TRAIN, read_spoken, read_spoken_voices
from router.decision import Prompt
from router.policies.activations import SubspacePolicy
from router.policy import Context
from router.probing import Activations, Outputs, Window, feature_layer
from router.scoring.centroids import calibrate, fit
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.features import EarlyFeatures, count_layers, tokenize

Watch = Callable[[list[str]], Iterable[str]]
THINNED = 3
"""Of so many prompts one is run through the whole base, to know what its states say of weights."""
SCORES = ("arrow", "spectr", "mass")
PINNED = (8, 16, 48)
"""How many requests have pinned an expert."""
DRAWS = 10
"""So many times they are drawn; what is said is the mean."""


class _Asked(NamedTuple):
    """What the voices ask."""

    texts: list[str]
    labels: Tensor
    """[rows], the experts in the order of their names, the base last."""
    near: Tensor
    """[rows], bool, which are near misses."""

    def take_every(self, step: int) -> _Asked:
        return _Asked(self.texts[::step], self.labels[::step], self.near[::step])

    def judge(self, way: str, choice: Tensor) -> RoutingRow:
        return judge_choice(way, choice, self.labels, self.near)


def measure_unlabelled(watch: Watch) -> list[RoutingRow]:
    """Measure how well people are routed by what is known of the experts.

    Args:
        watch: Hands prompts on, for a progress bar.
    """
    plain = PlainModel.load(Checkpoint.open(ensure_base()))
    features = EarlyFeatures(plain, feature_layer(count_layers(plain.model)))
    asked = _list_asked()
    library = Library.open(EXPERTS)
    examples = {name: features(watch(library.examples(name))) for name in NAMES}
    everyday = features(watch(read_everyday("train")))
    spoken = read_spoken(SPEAKERS)
    speakers = {
        name: features(watch([one.prompt for one in spoken if one.task == name])) for name in NAMES
    }
    x = features(watch(asked.texts))

    rows = [asked.judge("48 example prompts an expert", choose_nearest(examples, everyday, x))]
    for count in PINNED:
        draws = [_draw(speakers, count, seed) for seed in range(DRAWS)]
        judged = [asked.judge("", choose_nearest(drawn, everyday, x)) for drawn in draws]
        rows.append(_average(f"{count} pinned requests an expert", judged))

    probe = WeightsProbe(plain, {name: library.expert(name) for name in NAMES})
    some = asked.take_every(THINNED)
    for score in SCORES:
        choice = asyncio.run(_choose_by_weights(score, probe, some.texts, watch))
        rows.append(some.judge(f"neither: `subspace` by {score}, every third prompt", choice))
    return rows


def choose_nearest(experts: Mapping[str, Tensor], everyday: Tensor, x: Tensor) -> Tensor:
    """Return what `retrieval` chooses: the experts in the order given, the base last.

    Args:
        experts: The features of each expert's examples, [n, d].
        everyday: Those of everyday prompts, [n, d].
        x: Those of what is asked, [rows, d].
    """
    margins = fit(experts, everyday).score(x)
    threshold = calibrate(experts, everyday).threshold
    return margins.argmax(1).where(margins.amax(1) >= threshold, len(experts))


class WeightsProbe:
    """What the engine says of experts' weights, of plain transformers: a `Probe` of activations.

    Args:
        plain: The base.
        experts: The experts, by name.
    """

    def __init__(self, plain: PlainModel, experts: Mapping[str, Expert]) -> None:
        self._plain = plain
        self._experts = experts
        self._known: dict[str, Activations] = {}
        self._spectra = {
            site: {name: _find_spectrum(site, expert) for name, expert in experts.items()}
            for site in _list_sites(plain, list(experts.values()))
        }

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        raise NotImplementedError

    async def compare(self, prompt: Prompt, candidates: Sequence[Mix], window: Window) -> Outputs:
        raise NotImplementedError

    async def activations(self, text: str) -> Activations:
        """Return what a text's states say of the experts; it is run once."""
        if text not in self._known:
            self._known[text] = self._run(text)
        return self._known[text]

    @torch.no_grad()
    def _run(self, text: str) -> Activations:
        states: dict[str, Tensor] = {}
        modules = dict(self._plain.model.named_modules())

        def watch(site: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, inputs: states.update({site: inputs[0][0].float()})

        hooks = [modules[site].register_forward_pre_hook(watch(site)) for site in self._spectra]
        try:
            self._plain.model(tokenize(self._plain, text), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return self._measure(states)

    def _measure(self, states: Mapping[str, Tensor]) -> Activations:
        """Return the measures of the inputs of all sites, each [tokens, in]."""
        columns = []
        for site, x in states.items():
            column = []
            for vt, s in self._spectra[site].values():
                along = x @ vt.T
                rest = (x.square().sum(1) - along.square().sum(1)).clamp(min=0).sqrt()
                sizes = along[:, 0].abs().mean(), along.norm(dim=1).mean()
                column.append(torch.stack([*sizes, (along[-1] * s).norm(), rest.mean()]))
            columns.append(torch.stack(column, 1))
        arrow, spectr, norm, residual = torch.stack(columns, 2)
        inputs = torch.stack([x.norm(dim=1).mean() for x in states.values()])
        names, sites = tuple(self._experts), tuple(states)
        return Activations(names, sites, arrow, spectr, norm, residual, inputs)


def _list_sites(plain: PlainModel, experts: Sequence[Expert]) -> list[str]:
    """Return the first linear layer of every attention and MLP that all experts change."""
    first = ("self_attn.q_proj", "mlp.gate_proj")
    names = [name for name, _ in plain.model.named_modules() if name.endswith(first)]
    return [name for name in names if all(name in expert.factors for expert in experts)]


def _find_spectrum(site: str, expert: Expert) -> tuple[Tensor, Tensor]:
    """Return what an expert reads at a site: right singular vectors, [r, in], and values, [r]."""
    others = ("k_proj", "v_proj") if "self_attn" in site else ("up_proj",)
    place, _, own = site.rpartition(".")
    read = [expert.factors[f"{place}.{name}"] for name in (own, *others)]
    whole = LowRank(torch.cat([f.a for f in read]), torch.block_diag(*(f.b for f in read)))
    vt, us = make_canonical(whole)
    return vt, us.norm(dim=0)


async def _choose_by_weights(
    score: str, probe: WeightsProbe, texts: list[str], watch: Watch
) -> Tensor:
    """Return what `subspace` chooses, as `choose_nearest` does."""
    context = Context(MixRules(frozenset(NAMES), 0), {}, read_everyday("train"), probe)
    policy = await SubspacePolicy.create(SubspacePolicy.Options(score=score), context)
    found = [(await policy.select(Prompt(text), probe)).weights for text in watch(texts)]
    return torch.tensor([NAMES.index(next(iter(one))) if one else NONE for one in found])


def _list_asked() -> _Asked:
    spoken = [one for voice in read_spoken_voices(TRAIN).values() for one in voice]
    return _Asked(
        [one.prompt for one in spoken],
        torch.tensor([NAMES.index(one.task) if one.task else NONE for one in spoken]),
        torch.tensor([one.kind == NEAR_MISS for one in spoken]),
    )


def _draw(speakers: Mapping[str, Tensor], count: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: own[torch.randperm(len(own), generator=g)[:count]] for name, own in speakers.items()
    }


def _average(way: str, rows: list[RoutingRow]) -> RoutingRow:
    right, everyday, near = (mean(values) for values in list(zip(*rows, strict=True))[1:])
    return RoutingRow(way, right, everyday, near)
