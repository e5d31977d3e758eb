"""Which features tell prompts apart best, by what they cost: `tta router features`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from router.centroids import fit
from tta_serve.early import states, tokens
from tta_serve.offline import Offline
from tta_serve.prompts import Prompts

_TIMED = 32

Labelled = Sequence[tuple[str, str | None]]
Key = tuple[str, str]


@dataclass(frozen=True)
class Quality:
    """experts: share of the experts' prompts that score highest for their expert
    with_base: share of all prompts that get what they should, the base where no margin is above 0
    auroc: of the best margin, for "some expert should answer"
    """

    experts: float
    with_base: float
    auroc: float


@dataclass(frozen=True)
class Row:
    """One choice of features. ms: median time of one prompt, from its text to its features"""

    source: str
    template: str
    pooling: str
    standardised: bool
    quality: Quality
    ms: float

    @property
    def per_ms(self) -> float:
        return self.quality.with_base / self.ms


@dataclass(frozen=True)
class Encoder:
    """A way to features. pooled: of a text, [hidden] by (source, pooling)   parts: how to do each source of these alone"""

    template: str
    pooled: Callable[[str], dict[Key, Tensor]]
    parts: Mapping[str, Callable[[str], object]]

    def all(self, texts: Iterable[str]) -> dict[Key, Tensor]:
        """The features of several texts, [texts, hidden]."""
        found = [self.pooled(text) for text in texts]
        return {key: torch.stack([features[key] for features in found]) for key in found[0]}


def encoders(offline: Offline, layers: Sequence[int]) -> list[Encoder]:
    """Token embeddings, and early layers as the tap sees them, of the raw text and in the chat template; wordllama if it is
    installed (static sentence embeddings whose weights are in its package).
    """
    found = [_base(offline, layers, chat=False)]
    if offline.tokenizer.chat_template is not None:
        found.append(_base(offline, layers, chat=True))
    return [*found, *_wordllama()]


def compare(
    ways: Sequence[Encoder], prompts: Prompts, labelled: Labelled, watch: Callable[[list[str]], Iterable[str]]
) -> list[Row]:
    """Centroids of the examples and everyday prompts, raw and standardised, judged on labelled prompts; the best first."""
    asked = [prompt for prompt, _ in labelled]
    rows = []
    for way in ways:
        examples = {name: way.all(watch(texts)) for name, texts in prompts.experts.items()}
        everyday, found = way.all(watch(prompts.everyday)), way.all(watch(asked))
        ms = {source: _ms(part, asked[:_TIMED]) for source, part in way.parts.items()}
        for key in found:
            experts = {name: features[key] for name, features in examples.items()}
            for standardised in (True, False):
                model = fit(experts, everyday[key], standardise=standardised)
                quality = judge(model.scores(found[key]), model.names, labelled)
                rows.append(Row(key[0], way.template, key[1], standardised, quality, ms[key[0]]))
    return sorted(rows, key=lambda row: (-row.quality.with_base, -row.quality.auroc, row.ms))


def worth_it(rows: Sequence[Row]) -> list[bool]:
    """Of each choice whether it is better, by `with_base`, than all that are faster, and the best of those as fast.

    rows: as `compare` sorts them
    """
    return [all(row.ms < better.ms for better in rows[:n]) for n, row in enumerate(rows)]


def judge(scores: Tensor, names: Sequence[str], labelled: Labelled) -> Quality:
    """scores: margins, [prompts, experts]"""
    best, choice = scores.max(1)
    chosen = [names[i] for i in choice.tolist()]
    wanted = [task for _, task in labelled]
    right = [task == name for task, name in zip(wanted, chosen, strict=True) if task is not None]
    final = [name if margin > 0 else None for name, margin in zip(chosen, best.tolist(), strict=True)]
    right_or_base = [task == name for task, name in zip(wanted, final, strict=True)]
    of_experts = torch.tensor([task is not None for task in wanted])
    return Quality(_share(right), _share(right_or_base), auroc(best[of_experts], best[~of_experts]))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """P(a positive is above a negative), ties count half."""
    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


def _base(offline: Offline, layers: Sequence[int], *, chat: bool) -> Encoder:
    embed = offline.model.get_input_embeddings()
    names = ["token embeddings", *(f"layer {layer}" for layer in layers)]

    @torch.no_grad()
    def embedded(text: str) -> Tensor:
        ids = tokens(offline, text, chat=chat)
        result: Tensor = embed(ids)[0].float()
        return result

    def at(*which: int) -> Callable[[str], list[Tensor]]:
        return lambda text: states(offline, tokens(offline, text, chat=chat), which)

    def pooled(text: str) -> dict[Key, Tensor]:
        of_each = dict(zip(names, [embedded(text), *at(*layers)(text)], strict=True))
        means = {(name, "mean"): state.mean(0) for name, state in of_each.items()}
        return {**means, **{(name, "last"): state[-1] for name, state in of_each.items() if name != names[0]}}

    parts = {names[0]: embedded, **{f"layer {layer}": at(layer) for layer in layers}}
    return Encoder("chat" if chat else "raw", pooled, parts)


def _wordllama() -> list[Encoder]:
    if find_spec("wordllama") is None:
        return []
    package = import_module("wordllama")
    # As a cache, the package's own folder has the tokenizer too, so that nothing is looked for elsewhere.
    model = package.WordLlama.load(cache_dir=Path(str(package.__file__)).parent, disable_download=True)

    def embed(text: str) -> Tensor:
        return torch.from_numpy(model.embed(text)[0]).float()

    return [Encoder("raw", lambda text: {("wordllama", "mean"): embed(text)}, {"wordllama": embed})]


def _ms(part: Callable[[str], object], texts: Sequence[str]) -> float:
    taken = []
    for text in texts:
        start = time.perf_counter()
        part(text)
        taken.append(time.perf_counter() - start)
    return 1000 * median(taken)


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
