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


def fit(features: Mapping[str, Tensor], everyday: Tensor) -> Centroids:
    """features: by expert, [n_k, d]   everyday: [n, d]"""
    everything = torch.cat([*features.values(), everyday])
    mean, std = everything.mean(0), everything.std(0).clamp_min(1e-6)

    def centroid(f: Tensor) -> Tensor:
        return normalize(normalize((f - mean) / std, dim=-1).mean(0), dim=0)

    return Centroids(tuple(features), mean, std, torch.stack([centroid(f) for f in features.values()]), centroid(everyday))


@dataclass(frozen=True)
class Calibration:
    """threshold: abstain below this margin   temperature: of the softmax over margins"""

    threshold: float
    temperature: float


def calibrate(features: Mapping[str, Tensor], everyday: Tensor) -> Calibration:
    """Threshold and temperature from held-out folds of the examples, so that no example scores itself."""
    task_scores, labels, everyday_scores = _held_out(features, everyday)
    threshold = best_threshold(task_scores.max(1).values, everyday_scores.max(1).values)
    return Calibration(threshold, best_temperature(task_scores, labels))


def best_threshold(wanted: Tensor, unwanted: Tensor) -> float:
    """The cut with the least sum of the two error rates, in the middle of the widest gap that reaches it."""
    points = torch.cat([wanted, unwanted]).sort().values
    cuts = (points[1:] + points[:-1]) / 2
    errors = (wanted[None] < cuts[:, None]).double().mean(1) + (unwanted[None] >= cuts[:, None]).double().mean(1)
    best = errors <= errors.min() + 1e-12
    gaps = torch.where(best, points[1:] - points[:-1], -1.0)
    return float(cuts[gaps.argmax()])


def best_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature of softmax(scores / T) with the least cross-entropy, on a grid of 1/1000 to 1.

    Labels are smoothed: without, examples that are told apart perfectly would send T to zero and forbid every blend.
    """
    grid = torch.logspace(-3, 0, 61)
    losses = torch.stack([torch.nn.functional.cross_entropy(scores / t, labels, label_smoothing=SMOOTHING) for t in grid])
    return float(grid[losses.argmin()])


def _held_out(features: Mapping[str, Tensor], everyday: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    task, labels, none = [], [], []
    for fold in range(FOLDS):
        model = fit({n: _drop(f, fold) for n, f in features.items()}, _drop(everyday, fold))
        for k, f in enumerate(features.values()):
            kept = model.scores(f[fold::FOLDS])
            task.append(kept)
            labels += [k] * len(kept)
        none.append(model.scores(everyday[fold::FOLDS]))
    return torch.cat(task), torch.tensor(labels), torch.cat(none)


def _drop(f: Tensor, fold: int) -> Tensor:
    keep = torch.ones(len(f), dtype=torch.bool)
    keep[fold::FOLDS] = False
    return f[keep]
