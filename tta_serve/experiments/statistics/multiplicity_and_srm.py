"""Whether the split is what it should be, and what several claims read together have to survive."""

from collections.abc import Mapping
from typing import TypeVar

from scipy.stats import chisquare

from tta_serve.experiments.statistics.moments import AnalysisError

# Below this p the counts are not the split that was asked for, and no result is to be trusted
SRM_ALERT = 0.001
Key = TypeVar("Key")


def srm(counts: Mapping[str, int], weights: Mapping[str, float]) -> float:
    """Return the p-value of a sample ratio mismatch, 1 where there is nothing to compare.

    It is Pearson's chi-square test of the units per arm against the arms' weights, which must be
    those of one version of an experiment. p is 0 where an arm of weight 0 has units. The p-value
    is for one look: a sound split of two arms falls below 0.001 at some time in 2.4 % of
    experiments if each of 5000 units is looked at.

    Raises:
        AnalysisError: The weights are not of the same arms, one is below 0, or all are 0.
    """
    if (
        set(counts) != set(weights)
        or min(weights.values(), default=-1) < 0
        or not sum(weights.values())
    ):
        raise AnalysisError(
            f"weights must be given for the arms {', '.join(sorted(counts))}, each >= 0 and not"
            " all 0"
        )
    if any(counts[arm] and not weights[arm] for arm in counts):
        return 0.0
    arms = [arm for arm in counts if weights[arm]]
    units = sum(counts.values())
    total = sum(weights.values())
    if not units or len(arms) == 1:
        return 1.0

    observed = [counts[arm] for arm in arms]
    expected = [units * weights[arm] / total for arm in arms]
    return float(chisquare(observed, expected).pvalue)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return Holm's adjusted p-values (1979) for m claims read together, arms times metrics.

    p_(i) becomes the largest of min(1, (m - j + 1) p_(j)) over j <= i. That any false claim gets
    alpha or less has at most probability alpha, whatever their dependence, and at all looks
    together if the p-values are always valid.

    Holm has no simple intervals. Those to go with it are Bonferroni's, `Sequential(alpha=alpha /
    m)`: they hold together too, but may include 0 where Holm claims a difference.
    """
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for i, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[key]))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}
