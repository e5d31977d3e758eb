"""From proportions to a mix: few experts, on the grid, with the sum that was meant."""

from collections.abc import Mapping

from adapters.mix import Mix, MixRules


def blend(weights: Mapping[str, float], rules: MixRules) -> Mix:
    """Return the mix nearest to some weights, of at most `rules.max_experts` experts.

    The largest weights stay, ties in the order of names. Each is rounded to the grid, but for the
    largest: it takes what rounding and the left out ones leave, so that the mix has the sum of the
    weights (on the grid), and proportions of sum 1 stay of sum 1.

    Args:
        weights: By expert, none negative.
        rules: The grid, and how many experts a mix may have.
    """
    assert all(weight >= 0 for weight in weights.values())
    if not weights:
        return Mix()
    best, *others = sorted(weights, key=lambda name: (-weights[name], name))[: rules.max_experts]
    rounded = {name: rules.snap(weights[name]) for name in others}
    rest = rules.snap(sum(weights.values())) - sum(rounded.values())
    return rules.mix({best: max(rest, 0.0), **rounded})


def find_rounding(weights: Mapping[str, float], mix: Mix) -> float | None:
    """Return how far the farthest coefficient of a mix is from its weight, None without weights."""
    if not weights:
        return None
    chosen = {name: c for name, c in mix.coefficients if isinstance(c, float)}
    return max(abs(weight - chosen.get(name, 0.0)) for name, weight in weights.items())
