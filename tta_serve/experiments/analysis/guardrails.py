"""Which treatments do harm."""

import math
from collections.abc import Iterator

from tta_serve.experiments.analysis.comparisons import (
    adjusted_moments,
    testable_moments,
    treatments,
)
from tta_serve.experiments.analysis.formatting import format_number
from tta_serve.experiments.analysis.results import Estimate, GuardrailResult
from tta_serve.experiments.analysis.tallies import MetricTally
from tta_serve.experiments.design.definition import Definition, Guardrail
from tta_serve.experiments.statistics.sequential import Sequential


def check_guardrail(
    tally: MetricTally, guardrail: Guardrail, definition: Definition
) -> Iterator[GuardrailResult]:
    """Yield what a guardrail says of each treatment.

    Args:
        tally: The tally of the guardrail's metric.
    """
    control = definition.control
    arms = testable_moments(guardrail, adjusted_moments(tally, guardrail, definition))
    test = one_sided_test(definition)
    sign = 1 if guardrail.better == "lower" else -1
    for arm in treatments(definition):
        difference = test.difference(arms[control], arms[arm])
        worse = sign * difference.estimate
        low = difference.low if sign > 0 else -difference.high
        breached = low > guardrail.tolerated
        why = (
            f"{guardrail.name}: {arm} is worse than {control} by {format_number(worse)}, surely by"
            f" more than {format_number(low)}, where {format_number(guardrail.tolerated)} is"
            " tolerated"
        )
        yield GuardrailResult(
            metric=guardrail.name,
            arm=arm,
            tolerated=guardrail.tolerated,
            worse_by=Estimate(worse, low if math.isfinite(low) else None, None),
            breached=breached,
            why=why if breached else "",
        )


def one_sided_test(definition: Definition) -> Sequential:
    """Return the test of which either bound alone holds at level 1 - alpha.

    Mixing over effects of one sign only (half-normal; Howard, Ramdas, McAuliffe & Sekhon 2021,
    arXiv 1810.08240) the likelihood ratio is 2 Phi(x) exp(x^2 / 2) / sqrt(1 + r) with
    x = z sqrt(r / (1 + r)). As Phi(x) >= 1 - exp(-x^2 / 2) / 2, it is 1 / alpha at the latest where
    exp(x^2 / 2) = sqrt(1 + r) / (2 alpha) + 1/2 <= sqrt(1 + r) (1 + alpha) / (2 alpha), and that is
    the boundary of a two-sided test at level 2 alpha / (1 + alpha).
    """
    return Sequential(definition.target, 2 * definition.alpha / (1 + definition.alpha))
