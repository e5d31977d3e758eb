"""Nearest standardised centroid: the arithmetic of `retrieval`, on features alone.

With mean and standard deviation over all example features, per dimension, an example f becomes z =
norm((f - mean) / std), a class becomes the normalised mean of its z, and the score of expert k is
the margin

    s_k(f) = <z, c_k> - <z, c_none>          c_none: the centroid of the everyday prompts

Standardising matters as much as the layer: a few dimensions of a language model's states are orders
larger than the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

FOLDS = 5
"""How many parts the examples are split into for calibration; also the least number of examples."""
SMOOTHING = 0.002
"""The share of a label that all classes get, see `find_temperature`."""
TEMPERATURES = torch.logspace(-3, 0, 61)
"""The temperatures to choose from, 1/1000 to 1, which suit margins."""


@dataclass(frozen=True)
class Centroids:
    """The standardisation and the centroids that make margins of features."""

    names: tuple[str, ...]
    """The K experts, in the order of the scores."""
    mean: Tensor
    """[d], of all features that were fitted to."""
    std: Tensor
    """[d], likewise."""
    experts: Tensor
    """[K, d], the centroids of the experts, in the order of `names`."""
    none: Tensor
    """[d], the centroid of the everyday prompts."""

    def score(self, features: Tensor) -> Tensor:
        """Return the margins s, [..., K], each in [-2, 2].

        Args:
            features: [..., d].
        """
        z = normalize((features - self.mean) / self.std, dim=-1)
        return z @ self.experts.T - (z @ self.none).unsqueeze(-1)


def fit(features: Mapping[str, Tensor], everyday: Tensor, *, standardise: bool = True) -> Centroids:
    """Fit centroids to the features of example prompts.

    Args:
        features: By expert, [n_k, d], or [n_k, forms, d] of prompts read in several forms. Without
            an expert there is nothing to choose.
        everyday: The features of prompts for no expert, shaped likewise.
        standardise: Whether to measure mean and deviation; else they are taken for 0 and 1.
    """
    features = {name: f.flatten(0, -2) for name, f in features.items()}
    everyday = everyday.flatten(0, -2)
    everything = torch.cat([*features.values(), everyday])
    mean = everything.mean(0)
    std = everything.std(0).clamp_min(1e-6)
    if not standardise:
        mean = torch.zeros_like(mean)
        std = torch.ones_like(std)

    def centroid(f: Tensor) -> Tensor:
        return normalize(normalize((f - mean) / std, dim=-1).mean(0), dim=0)

    return Centroids(
        tuple(features),
        mean,
        std,
        torch.stack([centroid(f) for f in features.values()])
        if features
        else mean.new_zeros(0, len(mean)),
        centroid(everyday),
    )


@dataclass(frozen=True)
class Calibration:
    """What turns margins into a decision."""

    threshold: float
    """The base answers if no margin reaches it."""
    temperature: float
    """T of the softmax over margins."""


def calibrate(features: Mapping[str, Tensor], everyday: Tensor) -> Calibration:
    """Find threshold and temperature from held-out folds of the examples.

    So no example is scored, in any form, by centroids that it was part of.
    """
    task_scores, labels, everyday_scores = _held_out(features, everyday)
    threshold = find_threshold(task_scores.max(1).values, everyday_scores.max(1).values)
    return Calibration(threshold, find_temperature(task_scores, labels))


def find_threshold(wanted: Tensor, unwanted: Tensor) -> float:
    """Return the cut with the least sum of the two error rates.

    Of all such cuts it is the middle of the widest gap between two points.

    Args:
        wanted: Scores that should be above the cut.
        unwanted: Scores that should be below it.
    """
    points = torch.cat([wanted, unwanted]).sort().values
    cuts = (points[1:] + points[:-1]) / 2
    errors = _share_below(cuts, wanted) + 1 - _share_below(cuts, unwanted)
    best = errors <= errors.min() + 1e-12
    gaps = torch.where(best, points[1:] - points[:-1], -1.0)
    return float(cuts[gaps.argmax()])


def find_temperature(scores: Tensor, labels: Tensor, grid: Tensor = TEMPERATURES) -> float:
    """Return the temperature T of softmax(scores / T) with the least cross-entropy.

    Labels are smoothed: without, examples that are told apart perfectly would send T to zero and
    forbid every blend.

    Args:
        scores: [examples, classes].
        labels: [examples], the right class of each.
        grid: The temperatures to choose from.
    """
    losses = [cross_entropy(scores / t, labels, label_smoothing=SMOOTHING) for t in grid]
    return float(grid[torch.stack(losses).argmin()])


def split_fold(f: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Return the rows of f outside a fold, and those in it: every fifth, from row `fold` on."""
    held = torch.arange(len(f)) % FOLDS == fold
    return f[~held], f[held]


def _share_below(cuts: Tensor, points: Tensor) -> Tensor:
    """Return for each cut the share of the points that are below it."""
    return torch.searchsorted(points.sort().values, cuts).double() / len(points)


def _held_out(features: Mapping[str, Tensor], everyday: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return held-out margins of the experts' examples, their labels, and the everyday margins."""
    task = []
    labels = []
    none = []
    for fold in range(FOLDS):
        parts = {name: split_fold(f, fold) for name, f in features.items()}
        others, held = split_fold(everyday, fold)
        model = fit({name: kept for name, (kept, _) in parts.items()}, others)
        for k, (_, left_out) in enumerate(parts.values()):
            task.append(model.score(left_out.flatten(0, -2)))
            labels += [k] * len(task[-1])
        none.append(model.score(held.flatten(0, -2)))
    return torch.cat(task), torch.tensor(labels), torch.cat(none)
