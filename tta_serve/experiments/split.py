"""Whether the arms have the units that they should have."""

from collections.abc import Collection, Mapping

from router.experiments.checks import SRM_ALERT, srm
from router.experiments.definition import Definition
from tta_serve.experiments.results import Split
from tta_serve.experiments.words import chance


def split(definition: Definition, units: Mapping[str, int], stopped: Collection[str]) -> Split:
    """Of the arms whose units have always been theirs: one that is stopped gives its own to the control.

    units: distinct ones, by arm
    """
    asked = [arm for arm in definition.weights if not stopped or arm not in {*stopped, definition.control}]
    counts = {arm: units.get(arm, 0) for arm in asked}
    weights = {arm: definition.weights[arm] for arm in asked}
    expected = {arm: sum(counts.values()) * weight / sum(weights.values()) for arm, weight in weights.items()}
    without = f", without {', '.join(sorted(stopped))} and the control, which took over their units" if stopped else ""
    if definition.bandit:
        return Split(None, False, counts, {}, "not tested, as a bandit changes the arms' weights")
    if len(asked) < 2:
        return Split(None, False, counts, expected, f"not tested{without}, as there are no two arms left")
    p = srm(counts, weights)
    said = "NOT as it should be" if p < SRM_ALERT else "as it should be"
    return Split(p, p < SRM_ALERT, counts, expected, f"{said}{without}; chi-square p {chance(p)}, alarm below {SRM_ALERT}")
