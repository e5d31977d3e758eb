"""Nearest standardised centroid: the arithmetic of `retrieval`, on features alone.

With mean and standard deviation over all example features, per dimension, an example f becomes z = norm((f - mean) / std),
a class becomes the normalised mean of its z, and the score of expert k is the margin

    s_k(f) = <z, c_k> - <z, c_none>          c_none: the centroid of the everyday prompts

Standardising matters as much as the layer: a few dimensions of a language model's states are orders larger than the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

FOLDS = 5
SMOOTHING = 0.002
TEMPERATURES = torch.logspace(-3, 0, 61)


@dataclass(frozen=True)
class Centroids:
    """mean, std: [d]   experts: [K, d], in the order of `names`   none: [d]"""

    names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    experts: Tensor
    none: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """features: [..., d]. Returns the margins s, [..., K], each in [-2, 2]."""
        z = normalize((features - self.mean) / self.std, dim=-1)
        return z @ self.experts.T - (z @ self.none).unsqueeze(-1)


def fit(features: Mapping[str, Tensor], everyday: Tensor, *, standardise: bool = True) -> Centroids:
    """features: by expert, [n_k, d], or [n_k, forms, d] of prompts read in several forms   everyday: likewise

    standardise: else mean 0 and deviation 1 are taken for granted
    """
    features, everyday = {name: f.flatten(0, -2) for name, f in features.items()}, everyday.flatten(0, -2)
    everything = torch.cat([*features.values(), everyday])
    mean, std = everything.mean(0), everything.std(0).clamp_min(1e-6)
    if not standardise:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)

    def centroid(f: Tensor) -> Tensor:
        return normalize(normalize((f - mean) / std, dim=-1).mean(0), dim=0)

    return Centroids(tuple(features), mean, std, torch.stack([centroid(f) for f in features.values()]), centroid(everyday))


@dataclass(frozen=True)
class Calibration:
    """threshold: abstain below this margin   temperature: of the softmax over margins"""

    threshold: float
    temperature: float


def calibrate(features: Mapping[str, Tensor], everyday: Tensor) -> Calibration:
    """Threshold and temperature from held-out folds of the examples, so that no example scores itself in any form."""
    task_scores, labels, everyday_scores = _held_out(features, everyday)
    threshold = best_threshold(task_scores.max(1).values, everyday_scores.max(1).values)
    return Calibration(threshold, best_temperature(task_scores, labels))


def best_threshold(wanted: Tensor, unwanted: Tensor) -> float:
    """The cut with the least sum of the two error rates, in the middle of the widest gap that reaches it."""
    points = torch.cat([wanted, unwanted]).sort().values
    cuts = (points[1:] + points[:-1]) / 2
    errors = _share_below(cuts, wanted) + 1 - _share_below(cuts, unwanted)
    best = errors <= errors.min() + 1e-12
    gaps = torch.where(best, points[1:] - points[:-1], -1.0)
    return float(cuts[gaps.argmax()])


def best_temperature(scores: Tensor, labels: Tensor, grid: Tensor = TEMPERATURES) -> float:
    """The temperature of softmax(scores / T) with the least cross-entropy, of those on a grid: 1/1000 to 1 suits margins.

    Labels are smoothed: without, examples that are told apart perfectly would send T to zero and forbid every blend.
    """
    losses = torch.stack([torch.nn.functional.cross_entropy(scores / t, labels, label_smoothing=SMOOTHING) for t in grid])
    return float(grid[losses.argmin()])


def parted(f: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """The rows of f outside a fold, and those in it: every fifth, begun at number `fold`."""
    held = torch.arange(len(f)) % FOLDS == fold
    return f[~held], f[held]


def _share_below(cuts: Tensor, points: Tensor) -> Tensor:
    return torch.searchsorted(points.sort().values, cuts).double() / len(points)


def _held_out(features: Mapping[str, Tensor], everyday: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    task, labels, none = [], [], []
    for fold in range(FOLDS):
        parts, (others, held) = {name: parted(f, fold) for name, f in features.items()}, parted(everyday, fold)
        model = fit({name: kept for name, (kept, _) in parts.items()}, others)
        for k, (_, left_out) in enumerate(parts.values()):
            task.append(model.scores(left_out.flatten(0, -2)))
            labels += [k] * len(task[-1])
        none.append(model.scores(held.flatten(0, -2)))
    return torch.cat(task), torch.tensor(labels), torch.cat(none)
