"""Which treatments do harm."""

import math
from collections.abc import Iterator

from router.experiments.definition import Definition, Guardrail
from router.experiments.sequential import Sequential
from tta_serve.experiments.comparing import moments, testable, treatments
from tta_serve.experiments.logs import Tally
from tta_serve.experiments.results import Estimate, Guarded
from tta_serve.experiments.words import number


def guarded(counted: Tally, guardrail: Guardrail, definition: Definition) -> Iterator[Guarded]:
    """The guardrail on each treatment."""
    control, rail = definition.control, guardrail
    arms, test = testable(rail, moments(counted, rail, definition)), one_sided(definition)
    sign = 1 if rail.better == "lower" else -1
    for arm in treatments(definition):
        found = test.difference(arms[control], arms[arm])
        worse, low = sign * found.estimate, found.low if sign > 0 else -found.high
        breached = low > rail.tolerated
        sure = f"by {number(worse)}, surely by more than {number(low)}, where {number(rail.tolerated)} is tolerated"
        why = f"{rail.name}: {arm} is worse than {control} {sure}" if breached else ""
        yield Guarded(
            rail.name, arm, rail.tolerated, Estimate(worse, low if math.isfinite(low) else None, None), breached, why
        )


def one_sided(definition: Definition) -> Sequential:
    """The test of which either bound alone holds at level 1 - alpha.

    Mixing over effects of one sign only (half-normal; Howard, Ramdas, McAuliffe & Sekhon 2021, arXiv 1810.08240) the
    likelihood ratio is 2 Phi(x) exp(x^2 / 2) / sqrt(1 + r) with x = z sqrt(r / (1 + r)). As Phi(x) >= 1 - exp(-x^2 / 2) / 2,
    it is 1 / alpha at the latest where exp(x^2 / 2) = sqrt(1 + r) / (2 alpha) + 1/2 <= sqrt(1 + r) (1 + alpha) / (2 alpha),
    and that is the boundary of a two-sided test at level 2 alpha / (1 + alpha).
    """
    return Sequential(definition.target, 2 * definition.alpha / (1 + definition.alpha))
