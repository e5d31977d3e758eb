"""From proportions to a mix: sparse, on the grid, with the sum it was meant to have."""

from collections.abc import Mapping

from adapters.mix import Mix, MixRules


def blend(weights: Mapping[str, float], rules: MixRules) -> Mix:
    """The mix nearest to `weights`, of at most `rules.max_experts` experts, whose sum is that of the weights on the grid.

    The largest weights stay, ties in the order of names; each is rounded to the grid, and the largest takes what rounding and
    the left out ones leave, so that proportions of sum 1 stay of sum 1. weights: not negative
    """
    assert all(weight >= 0 for weight in weights.values())
    if not weights:
        return Mix()
    best, *others = sorted(weights, key=lambda name: (-weights[name], name))[: rules.max_experts]
    rounded = {name: rules.rounded(weights[name]) for name in others}
    rest = rules.rounded(sum(weights.values())) - sum(rounded.values())
    return rules.mix({best: max(rest, 0.0), **rounded})
