"""Means, ratios and differences over questions, with bootstrap intervals of 95 %.

The interval is the percentile one (Efron 1979) of 2000 resamples of the questions, seeded. It says
how much a figure would move with other questions of the same kind, not with other experts, other
training or another judge; and where all questions of a slice had the same score it has no width,
which does not mean that there is no doubt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

RESAMPLES = 2000
"""How often the questions are resampled."""
LEVEL = 0.95
"""The share of the resamples that lie within an interval."""
Array = np.ndarray[Any, np.dtype[np.float64]]


class BootstrapEstimate(NamedTuple):
    """A figure and its bootstrap interval.

    All is NaN where there is nothing to compute it from, the bounds are for a single question.
    """

    value: float
    low: float
    high: float


NO_ESTIMATE = BootstrapEstimate(float("nan"), float("nan"), float("nan"))


def estimate_mean(values: Sequence[float], seed: int) -> BootstrapEstimate:
    """Estimate the mean over questions."""
    return _estimate(
        [np.asarray(values, float)], lambda x, axis=-1: x.mean(axis), seed, paired=False
    )


def estimate_ratio(
    values: Sequence[float], reference: Sequence[float], seed: int
) -> BootstrapEstimate:
    """Estimate sum values / sum reference of the same questions, which are resampled together.

    A resample whose reference is 0 has no ratio, and is left out.
    """
    pair = [np.asarray(values, float), np.asarray(reference, float)]
    assert len(values) == len(reference)
    if not pair[1].sum():
        return NO_ESTIMATE
    return _estimate(
        pair, lambda x, y, axis=-1: _divide(x.sum(axis), y.sum(axis)), seed, paired=True
    )


def estimate_difference(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int
) -> BootstrapEstimate:
    """Estimate the mean over slices of mean(values - reference).

    Questions are resampled within their slice, values and reference together.

    Args:
        pairs: Values and reference of the same questions, by slice.
        seed: Of the resamples.
    """
    gaps = [np.asarray(a, float) - np.asarray(b, float) for a, b in pairs if len(a)]
    return _estimate(
        gaps,
        lambda *slices, axis=-1: sum(s.mean(axis) for s in slices) / len(slices),
        seed,
        paired=False,
    )


def _divide(a: Array, b: Array) -> Array:
    """Return a / b, NaN where b is 0."""
    return np.asarray(np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) != 0))


def _estimate(
    samples: Sequence[Array], statistic: Callable[..., Any], seed: int, *, paired: bool
) -> BootstrapEstimate:
    if not samples or not all(map(len, samples)):
        return NO_ESTIMATE
    value = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return BootstrapEstimate(value, float("nan"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of resamples without a ratio
        found = bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            method="percentile",
            paired=paired,
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
    low, high = np.nanpercentile(found.bootstrap_distribution, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return BootstrapEstimate(value, float(low), float(high))
