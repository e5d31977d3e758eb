"""CUPED from sums against CUPED from rows."""

import numpy as np
import pytest

from tta_serve.experiments.statistics.cuped import cuped
from tta_serve.experiments.statistics.moments import Array, Bivariate, Moments


def rows(rng: np.random.Generator, n: int, effect: float) -> tuple[Array, Array]:
    x = rng.gamma(3, size=n)
    return x, 2 * x + rng.normal(0, 3, size=n) + effect


def test_sums_give_what_rows_give_with_the_overall_mean_in_the_place_of_a_missing_past(
    rng: np.random.Generator,
) -> None:
    past = {"a": rows(rng, 300, 0.0), "b": rows(rng, 200, 0.5)}
    new = {"a": rng.normal(6, 3, size=40), "c": rng.normal(6, 3, size=30)}
    found = cuped(
        {arm: Bivariate.of(*xy) for arm, xy in past.items()},
        {arm: Moments.of(y) for arm, y in new.items()},
    )
    center = np.concatenate([x for x, _ in past.values()]).mean()
    inner = [(x - x.mean(), y - y.mean()) for x, y in past.values()]
    theta = sum(x @ y for x, y in inner) / sum(x @ x for x, _ in inner)
    assert found.theta == pytest.approx(theta)
    assert found.unused == ""
    assert set(found.arms) == {"a", "b", "c"}
    for arm, moments in found.arms.items():
        x, y = past.get(arm, (np.empty(0), np.empty(0)))
        expected = Moments.of(np.concatenate([y - theta * (x - center), new.get(arm, np.empty(0))]))
        assert (moments.n, moments.mean, moments.m2) == pytest.approx(
            (expected.n, expected.mean, expected.m2)
        )


def test_the_variance_falls_by_the_squared_correlation(rng: np.random.Generator) -> None:
    x, y = rows(rng, 500, 0.0)
    found = cuped({"a": Bivariate.of(x, y)}, {})
    assert found.arms["a"].variance / y.var(ddof=1) == pytest.approx(
        1 - np.corrcoef(x, y)[0, 1] ** 2
    )


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (
            {
                "a": Bivariate.of([0.1] * 3, [1.0, 2.0, 4.0]),
                "b": Bivariate.of([0.1] * 2, [0.0, 1.0]),
            },
            "the same",
        ),
        ({}, "no unit has"),
    ],
)
def test_without_a_use_for_the_covariate_the_moments_are_the_plain_ones(
    known: dict[str, Bivariate], says: str
) -> None:
    unknown = {arm: Moments.of([5.0, 6.0, 6.5]) for arm in ("a", "b")}
    found = cuped(known, unknown)
    assert says in found.unused
    assert found.theta == 0
    assert found.arms == {arm: known.get(arm, Bivariate()).y + unknown[arm] for arm in unknown}
