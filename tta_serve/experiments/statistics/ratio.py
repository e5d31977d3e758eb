"""Ratio metrics, sum of numerators / sum of denominators over units: the delta method.

An example is errors per request, with users as units.

Requests of one user are not independent, users are: the delta method (Deng, Knoblich & Lu, arXiv
1803.06336, section 3) replaces a unit's pair (x, y) by its influence z = (y - R x) / mean(x) with R
= mean(y) / mean(x). The ratio's variance is var(z) / n with

    var(z) = (var(y) - 2 R cov(x, y) + R^2 var(x)) / mean(x)^2
"""

from tta_serve.experiments.statistics.moments import AnalysisError, Bivariate, Moments


def ratio(pairs: Bivariate) -> Moments:
    """Return moments whose mean is the ratio y / x and whose variance is var(z).

    They can be tested as the moments of a plain mean are.

    Raises:
        AnalysisError: The denominators sum to 0.
    """
    if not pairs.n:
        return Moments()
    if not pairs.x.mean:
        raise AnalysisError(
            "the denominators of a ratio sum to 0; it needs units with a denominator above 0"
        )
    r = pairs.y.mean / pairs.x.mean
    m2 = pairs.y.m2 - 2 * r * pairs.co + r**2 * pairs.x.m2
    return Moments(pairs.n, r, max(m2, 0.0) / pairs.x.mean**2)
