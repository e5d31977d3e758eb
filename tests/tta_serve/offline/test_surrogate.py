"""Quadratic surrogates and the front that is searched on them, where the answer is known."""

import torch

from tta_serve.offline.surrogate import (
    TOTAL,
    draw_merges,
    find_undominated,
    fit,
    monomials,
    r2,
    search_front,
    spread_preferences,
)


def make_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def measure_distance(targets: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return -|c - t|^2 for each target, a quadratic, [merges, targets]."""
    return -torch.cdist(c, targets).square()


def test_monomials_are_all_products_up_to_degree_two() -> None:
    assert monomials(torch.tensor([2.0, 3.0])).tolist() == [1, 2, 3, 4, 6, 9]
    assert monomials(torch.zeros(4, 6)).shape == (4, 28)


def test_a_quadratic_is_fitted_exactly_and_something_else_is_not() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]], dtype=torch.float64)
    c = draw_merges(30, 3, make_generator())
    model = fit(c[:20], measure_distance(targets, c[:20]))
    assert torch.allclose(model(c[20:]), measure_distance(targets, c[20:]))
    assert torch.allclose(
        r2(model, c[20:], measure_distance(targets, c[20:])), torch.ones(2, dtype=torch.float64)
    )
    wild = torch.sin(40 * c)
    assert (r2(fit(c[:20], wild[:20]), c[20:], wild[20:]) < 0.5).all()


def test_random_merges_fill_the_simplex_up_to_their_greatest_sum() -> None:
    c = draw_merges(4000, 4, make_generator())
    assert (c >= 0).all()
    assert 0.98 * TOTAL < c.sum(1).max() <= TOTAL
    torch.testing.assert_close(
        c.mean(0), torch.full((4,), TOTAL / 8, dtype=torch.float64), rtol=0.1, atol=0
    )


def test_preferences_begin_with_the_corners_and_the_centre_and_spread() -> None:
    for tasks, count in ((2, 12), (3, 9), (6, 12)):
        found = spread_preferences(tasks, count)
        assert found.shape == (count, tasks)
        assert torch.equal(found[:tasks], torch.eye(tasks, dtype=torch.float64))
        torch.testing.assert_close(
            found[tasks], torch.full((tasks,), 1 / tasks, dtype=torch.float64)
        )
        torch.testing.assert_close(found.sum(1), torch.ones(count, dtype=torch.float64))
        assert torch.pdist(found).min() > 0.05


def test_search_finds_the_merge_between_two_aims_that_a_preference_wants() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    c = draw_merges(40, 2, make_generator())
    model = fit(c, measure_distance(targets, c))
    preferences = torch.tensor(
        [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.8, 0.2]], dtype=torch.float64
    )
    found = search_front(model, preferences, torch.cat([targets, c]), make_generator())
    # On the line between the aims the losses are a^2 and (1 - a)^2, and equal where w_1 a^2 = w_2
    # (1 - a)^2.
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [2 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)


def test_dominated_and_repeated_points_are_left_out() -> None:
    values = torch.tensor(
        [[0.0, -2.0], [-1.0, -1.0], [-1.0, -1.5], [-2.0, 0.0], [-1.0, -1.0], [0.0, -2.5]]
    )
    assert find_undominated(values) == [0, 1, 3]
