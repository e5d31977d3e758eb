"""How well strangers' prompts are routed: `python -m deploy.demo strangers`.

Each voice of `voices/train` is left out of the training of a gate, which is asked about it; the
gate that ships has heard all of those, and is asked about the voices of `voices/test`. Beside the
gate stands what else could tell what it does not know: the nearest centroid, as in `retrieval`, and
the nearest class by Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888), each alone and as a
veto, which leaves to the base what it would not give to the gate's expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.files.checkpoint import Checkpoint
from deploy.demo.base import ensure_base
from deploy.demo.everyday import read_everyday
from deploy.demo.model import EXPERTS
from deploy.demo.tasks import TASKS
from deploy.demo.voices import (
    NEAR_MISS,
    SPEAKERS,
    TEST,
    TRAIN,
    SpokenPrompt,
    read_spoken,
    read_spoken_voices,
)
from router.scoring.centroids import fit
from router.scoring.trained_gate import Gate
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.features import EarlyFeatures
from tta_serve.offline.gate_figures import choose, measure_gate
from tta_serve.offline.train_gate import GateSamples, GateSettings, fit_gate

NAMES = sorted(TASKS)
NONE = len(NAMES)
GENERATED = 300
_SHRINKAGE = 0.1
"""What is added to the variance of every standardised feature."""


class RoutingRow(NamedTuple):
    """How one way of routing does."""

    way: str
    right: float
    """Prompts of experts that are given to their expert."""
    everyday: float
    """Everyday prompts that are left to the base."""
    near_misses: float
    """Near misses that are."""


class _Heard(NamedTuple):
    """A voice's prompts."""

    samples: GateSamples
    """Their features by expert."""
    near: Tensor
    """[rows], bool, which are near misses; in the order of `samples.rows`."""


class StrangersReport(NamedTuple):
    """What was found."""

    rows: list[RoutingRow]
    """By the way of routing, voices left out of the training."""
    figures: dict[str, dict[str, float]]
    """Those of `measure_gate`, of the voices that were left out, and of the shipped gate on the
    voices of `test`, together and each."""


def measure_strangers(watch: Callable[[list[str]], Iterable[str]]) -> StrangersReport:
    """Measure how well strangers' prompts are routed.

    Args:
        watch: Hands prompts on, for a progress bar.
    """
    shipped = Gate.load(EXPERTS / "router")
    plain = PlainModel.load(Checkpoint.open(ensure_base()))
    features = EarlyFeatures(plain, shipped.about.layer)

    def read(spoken: Iterable[SpokenPrompt]) -> _Heard:
        every = list(spoken)
        own = {name: [s.prompt for s in every if s.task == name] for name in NAMES}
        base = [s for s in every if s.task is None]
        samples = GateSamples(
            {name: features(watch(texts), chat=True) for name, texts in own.items()},
            features(watch([s.prompt for s in base]), chat=True),
        )
        tasks = sum(map(len, own.values()))
        return _Heard(samples, torch.tensor([False] * tasks + [s.kind == NEAR_MISS for s in base]))

    generated = read(_list_generated()).samples
    speakers = read(read_spoken(SPEAKERS)).samples
    heard = {name: read(own) for name, own in read_spoken_voices(TRAIN).items()}
    new = {name: read(own) for name, own in read_spoken_voices(TEST).items()}

    rows, figures = _measure_left_out(shipped, generated, speakers, heard)
    judged = {name: _ask(shipped, own.samples) for name, own in new.items()}
    together = tuple(torch.cat(parts) for parts in zip(*judged.values(), strict=True))
    for name, (logits, labels) in {"test": together, **judged}.items():
        figures[name] = measure_gate(logits, labels, shipped.about.threshold)
    near = torch.cat([own.near for own in new.values()])
    choice, _ = choose(together[0], shipped.about.threshold)
    rows.append(judge_choice("the gate that ships, on voices of test", choice, together[1], near))
    return StrangersReport(rows, figures)


def _list_generated() -> list[SpokenPrompt]:
    """List generated prompts, and the everyday ones that are there for every library."""
    generated = [
        SpokenPrompt(example.prompt, name)
        for name, task in TASKS.items()
        for example in task.examples("train", GENERATED, 1)
    ]
    return [*generated, *(SpokenPrompt(prompt, None) for prompt in read_everyday("train"))]


def _ask(gate: Gate, samples: GateSamples) -> tuple[Tensor, Tensor]:
    x, labels = samples.rows()
    return gate.compute_logits(x).double(), labels


def _measure_left_out(
    shipped: Gate, generated: GateSamples, speakers: GateSamples, heard: Mapping[str, _Heard]
) -> tuple[list[RoutingRow], dict[str, dict[str, float]]]:
    """Judge each way of routing on voices that it was not made of."""
    threshold = shipped.about.threshold
    parts = []
    voices = {name: own.samples for name, own in heard.items()}
    deaf = fit_gate(shipped.about, [generated], GateSettings())
    for name, held in voices.items():
        x, labels = held.rows()
        others = [generated, *(voice for other, voice in voices.items() if other != name)]
        rest = [*others, speakers]
        gates = (fit_gate(shipped.about, own, GateSettings()) for own in (rest, others))
        logits, fewer, fewest = (g.compute_logits(x).double() for g in (*gates, deaf))
        experts = {n: torch.cat([own.experts[n] for own in rest]) for n in NAMES}
        everyday = torch.cat([own.everyday for own in rest])
        margins = fit(experts, everyday).score(x)
        centroid = margins.argmax(1).where(margins.amax(1) >= 0, NONE)
        mahalanobis = measure_distances([*experts.values(), everyday], x).argmin(1)
        parts.append((logits, labels, centroid, mahalanobis, fewer, fewest))
    logits, labels, centroid, mahalanobis, fewer, fewest = (
        torch.cat(p) for p in zip(*parts, strict=True)
    )
    near = torch.cat([own.near for own in heard.values()])

    choice, _ = choose(logits, threshold)
    ways = {
        "a gate of generated prompts": choose(fewest, 0.5)[0],
        "and of the other voices": choose(fewer, 0.5)[0],
        "the gate: and of many speakers": choice,
        "the nearest centroid": centroid,
        "the nearest class, by Mahalanobis distance": mahalanobis,
        "the gate where the centroid agrees, else the base": choice.where(centroid == choice, NONE),
        "the gate where the distance agrees, else the base": choice.where(
            mahalanobis == choice, NONE
        ),
    }
    rows = [judge_choice(way, chosen, labels, near) for way, chosen in ways.items()]
    return rows, {"left out": measure_gate(logits, labels, threshold)}


def measure_distances(classes: list[Tensor], x: Tensor) -> Tensor:
    """Return the squared distances of rows from the classes' means, [rows, classes].

    They are by the covariance that classes share.

    Args:
        classes: [n, d] of each.
        x: [rows, d].
    """
    every = torch.cat(classes)
    mean, std = every.mean(0), every.std(0).clamp_min(1e-6)
    z = [(own - mean) / std for own in classes]
    spread = torch.cat([own - own.mean(0) for own in z])
    covariance = spread.T @ spread / len(spread) + _SHRINKAGE * torch.eye(x.shape[1])
    inverse = torch.linalg.inv(covariance)
    away = torch.stack([(x - mean) / std - own.mean(0) for own in z])
    distances: Tensor = ((away @ inverse) * away).sum(2)
    return distances.T


def judge_choice(way: str, choice: Tensor, labels: Tensor, near: Tensor) -> RoutingRow:
    """Return how a way of routing does.

    Args:
        way: Its name.
        choice: [rows], the experts in the order of their names, the base last.
        labels: [rows], what is right.
        near: [rows], bool, which are near misses.
    """
    good, task = (choice == labels).double(), labels < NONE
    return RoutingRow(
        way,
        *(float(good[rows].mean()) for rows in (task, ~task & ~near, near)),
    )
