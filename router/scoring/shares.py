"""From scores to shares: softmax, and which of the shares count."""

import math
from collections.abc import Mapping


def softmax(scores: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """Return exp(s_k / T) / sum_j exp(s_j / T) by name; nothing if there are no scores.

    Args:
        scores: s, by name.
        temperature: T, positive.
    """
    if not scores:
        return {}
    highest = max(scores.values())
    powers = {name: math.exp((score - highest) / temperature) for name, score in scores.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def keep_best(
    shares: Mapping[str, float], most: int | None = None, above: float = 0.0
) -> dict[str, float]:
    """Return the largest shares, the best first, divided by their sum.

    Equal shares come in the order of their names.

    Args:
        shares: By name.
        most: How many to keep at most; None for all.
        above: Only shares over this are kept.
    """
    enough = (name for name in shares if shares[name] > above)
    kept = sorted(enough, key=lambda name: (-shares[name], name))[:most]
    total = sum(shares[name] for name in kept)
    return {name: shares[name] / total for name in kept}
