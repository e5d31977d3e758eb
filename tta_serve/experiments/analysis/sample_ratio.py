"""Whether the arms have the units that they should have."""

from collections.abc import Collection, Mapping

from tta_serve.experiments.analysis.formatting import format_p
from tta_serve.experiments.analysis.results import Split
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.statistics.multiplicity_and_srm import SRM_ALERT, srm


def check_split(
    definition: Definition, units: Mapping[str, int], stopped: Collection[str]
) -> Split:
    """Test the arms whose units have always been theirs.

    An arm that is stopped gives its units to the control, so that both are left out.

    Args:
        units: How many distinct units each arm has.
        stopped: The arms that were ever stopped.
    """
    left_out = {*stopped, definition.control} if stopped else set()
    weights = {arm: share for arm, share in definition.weights.items() if arm not in left_out}
    counts = {arm: units.get(arm, 0) for arm in weights}
    if definition.bandit:
        return Split(None, False, counts, {}, "not tested, as a bandit changes the arms' weights")

    total = sum(counts.values())
    whole = sum(weights.values())
    expected = {arm: total * weight / whole for arm, weight in weights.items()}
    without = ""
    if stopped:
        names = ", ".join(sorted(stopped))
        without = f", without {names} and the control, which took over their units"
    if len(weights) < 2:
        why = f"not tested{without}, as there are no two arms left"
        return Split(None, False, counts, expected, why)

    p = srm(counts, weights)
    alert = p < SRM_ALERT
    found = "NOT as it should be" if alert else "as it should be"
    why = f"{found}{without}; chi-square p {format_p(p)}, alarm below {SRM_ALERT}"
    return Split(p, alert, counts, expected, why)
