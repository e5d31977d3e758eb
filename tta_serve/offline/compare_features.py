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

from router.scoring.centroids import fit
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.features import read_states, tokenize
from tta_serve.offline.labelled_prompts import Prompts

_TIMED = 32

Labelled = Sequence[tuple[str, str | None]]
"""Prompts, each with the expert that should answer it or None."""
Key = tuple[str, str]
"""Where features come from and how tokens are pooled: (source, pooling)."""


@dataclass(frozen=True)
class Quality:
    """How well features route prompts with a known answer."""

    experts: float
    """The share of the experts' prompts that score highest for their expert."""
    with_base: float
    """The share of all prompts that get what they should, the base where no margin is above 0."""
    auroc: float
    """Of the best margin, for "some expert should answer"."""


@dataclass(frozen=True)
class FeatureRow:
    """One choice of features, with its quality and its cost."""

    source: str
    """A layer, the token embeddings, or another model."""
    template: str
    """"chat" if the chat template goes around the text, else "raw"."""
    pooling: str
    """"mean" over the tokens, or the "last" one."""
    standardised: bool
    """Whether the centroids standardise each dimension."""
    quality: Quality
    """How well it routes."""
    ms: float
    """The median time of one prompt, from its text to its features."""

    @property
    def per_ms(self) -> float:
        """What a millisecond brings."""
        return self.quality.with_base / self.ms


@dataclass(frozen=True)
class Encoder:
    """A way from texts to features, for several sources at once."""

    template: str
    """"chat" or "raw", see `FeatureRow`."""
    pooled: Callable[[str], dict[Key, Tensor]]
    """Makes a text's features, [hidden] by source and pooling."""
    parts: Mapping[str, Callable[[str], object]]
    """How to make each source of these alone, to time it."""

    def encode_all(self, texts: Iterable[str]) -> dict[Key, Tensor]:
        """Return the features of several texts, [texts, hidden] by source and pooling."""
        found = [self.pooled(text) for text in texts]
        return {key: torch.stack([features[key] for features in found]) for key in found[0]}


def list_encoders(plain: PlainModel, layers: Sequence[int]) -> list[Encoder]:
    """Return all ways to features that there are.

    These are token embeddings, and early layers as the tap sees them, of the raw text and in the
    chat template; and wordllama if it is installed (static sentence embeddings whose weights are in
    its package).
    """
    found = [_base(plain, layers, chat=False)]
    if plain.tokenizer.chat_template is not None:
        found.append(_base(plain, layers, chat=True))
    return [*found, *_wordllama()]


def compare_features(
    ways: Sequence[Encoder],
    prompts: Prompts,
    labelled: Labelled,
    watch: Callable[[list[str]], Iterable[str]],
) -> list[FeatureRow]:
    """Judge all choices of features on labelled prompts, the best first.

    Each is judged by the centroids of the examples and everyday prompts, raw and standardised.

    Args:
        ways: The ways to features.
        prompts: What routing is learned from.
        labelled: What it is judged on.
        watch: Hands prompts on, for a progress bar.
    """
    asked = [prompt for prompt, _ in labelled]
    rows = []
    for way in ways:
        examples = {name: way.encode_all(watch(texts)) for name, texts in prompts.experts.items()}
        everyday = way.encode_all(watch(prompts.everyday))
        found = way.encode_all(watch(asked))
        ms = {source: _time(part, asked[:_TIMED]) for source, part in way.parts.items()}
        for key in found:
            experts = {name: features[key] for name, features in examples.items()}
            for standardised in (True, False):
                model = fit(experts, everyday[key], standardise=standardised)
                quality = judge(model.score(found[key]), model.names, labelled)
                rows.append(
                    FeatureRow(key[0], way.template, key[1], standardised, quality, ms[key[0]])
                )
    return sorted(rows, key=lambda row: (-row.quality.with_base, -row.quality.auroc, row.ms))


def mark_worthwhile(rows: Sequence[FeatureRow]) -> list[bool]:
    """Return of each choice whether it is worth its time.

    It is if it is better, by `with_base`, than all that are faster, and the best of those as fast.

    Args:
        rows: As `compare_features` sorts them.
    """
    return [all(row.ms < better.ms for better in rows[:n]) for n, row in enumerate(rows)]


def judge(scores: Tensor, names: Sequence[str], labelled: Labelled) -> Quality:
    """Judge margins of labelled prompts.

    Args:
        scores: Margins, [prompts, experts].
        names: Of the experts.
        labelled: The prompts, in this order.
    """
    best, choice = scores.max(1)
    chosen = [names[i] for i in choice.tolist()]
    wanted = [task for _, task in labelled]
    right = [task == name for task, name in zip(wanted, chosen, strict=True) if task is not None]
    pairs = zip(chosen, best.tolist(), strict=True)
    final = [name if margin > 0 else None for name, margin in pairs]
    right_or_base = [task == name for task, name in zip(wanted, final, strict=True)]
    of_experts = torch.tensor([task is not None for task in wanted])
    return Quality(_share(right), _share(right_or_base), auroc(best[of_experts], best[~of_experts]))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Return P(a positive is above a negative), where ties count half."""
    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


def _base(plain: PlainModel, layers: Sequence[int], *, chat: bool) -> Encoder:
    embed = plain.model.get_input_embeddings()
    names = ["token embeddings", *(f"layer {layer}" for layer in layers)]

    @torch.no_grad()
    def embedded(text: str) -> Tensor:
        ids = tokenize(plain, text, chat=chat)
        result: Tensor = embed(ids)[0].float()
        return result

    def at(*which: int) -> Callable[[str], list[Tensor]]:
        return lambda text: read_states(plain, tokenize(plain, text, chat=chat), which)

    def pooled(text: str) -> dict[Key, Tensor]:
        states = dict(zip(names, [embedded(text), *at(*layers)(text)], strict=True))
        means = {(name, "mean"): state.mean(0) for name, state in states.items()}
        lasts = {(name, "last"): state[-1] for name, state in states.items() if name != names[0]}
        return {**means, **lasts}

    parts = {names[0]: embedded, **{f"layer {layer}": at(layer) for layer in layers}}
    return Encoder("chat" if chat else "raw", pooled, parts)


def _wordllama() -> list[Encoder]:
    if find_spec("wordllama") is None:
        return []
    package = import_module("wordllama")
    # As a cache, the package's own folder has the tokenizer too, so that nothing is looked for
    # elsewhere.
    model = package.WordLlama.load(
        cache_dir=Path(str(package.__file__)).parent, disable_download=True
    )

    def embed(text: str) -> Tensor:
        return torch.from_numpy(model.embed(text)[0]).float()

    return [Encoder("raw", lambda text: {("wordllama", "mean"): embed(text)}, {"wordllama": embed})]


def _time(part: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return the median time that a part takes for a text."""
    taken = []
    for text in texts:
        start = time.perf_counter()
        part(text)
        taken.append(time.perf_counter() - start)
    return 1000 * median(taken)


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
