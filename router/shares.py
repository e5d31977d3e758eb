"""From scores to shares: softmax, and which of the shares count."""

import math
from collections.abc import Mapping


def softmax(scores: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """exp(s_k / T) / sum_j exp(s_j / T) by name, without names when there are none. T: positive"""
    if not scores:
        return {}
    highest = max(scores.values())
    powers = {name: math.exp((score - highest) / temperature) for name, score in scores.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def best(shares: Mapping[str, float], most: int | None = None, above: float = 0.0) -> dict[str, float]:
    """The largest `most` of the shares that are over `above`, the best first, equal ones by name, divided by their sum."""
    kept = sorted((name for name in shares if shares[name] > above), key=lambda name: (-shares[name], name))[:most]
    total = sum(shares[name] for name in kept)
    return {name: shares[name] / total for name in kept}
