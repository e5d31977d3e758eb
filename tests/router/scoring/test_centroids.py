"""The arithmetic of retrieval, on features with a known answer."""

import pytest
import torch

from router.scoring.centroids import calibrate, find_temperature, find_threshold, fit
from tests.factories.known_features import make_clusters


def test_each_example_scores_highest_with_its_own_expert_and_everyday_below_zero() -> None:
    features, everyday = make_clusters()
    model = fit(features, everyday)
    for k, name in enumerate(features):
        scores = model.score(features[name])
        assert (scores.argmax(1) == k).all()
        assert (scores[:, k] > 0).all()
    assert (model.score(everyday) < 0).all()


def test_scores_do_not_depend_on_the_scale_or_offset_of_a_dimension() -> None:
    features, everyday = make_clusters()
    scale, offset = torch.linspace(0.01, 100, 32), torch.linspace(-5, 5, 32)
    moved = fit({n: f * scale + offset for n, f in features.items()}, everyday * scale + offset)
    x = features["a"]
    torch.testing.assert_close(
        moved.score(x * scale + offset), fit(features, everyday).score(x), rtol=1e-3, atol=1e-4
    )


def test_the_threshold_sits_in_the_middle_of_the_gap() -> None:
    assert find_threshold(torch.tensor([1.0, 2.0, 0.8]), torch.tensor([0.2, -1.0])) == 0.5


def test_the_threshold_weighs_both_kinds_of_error_alike() -> None:
    # One everyday prompt of two above the tasks costs more than one task of four below it.
    cut = find_threshold(torch.tensor([0.1, 1.0, 1.1, 1.2]), torch.tensor([0.0, 0.5]))
    assert 0.5 < cut < 1.0


def test_the_threshold_has_the_least_errors_of_all_cuts() -> None:
    g = torch.Generator().manual_seed(1)
    wanted, unwanted = torch.randn(40, generator=g) + 1, torch.randn(30, generator=g)

    def errors(cut: float) -> float:
        missed = sum(x < cut for x in wanted.tolist()) / 40
        false = sum(x >= cut for x in unwanted.tolist()) / 30
        return float(missed + false)

    least = min(errors(cut) for cut in torch.linspace(-4, 5, 5000).tolist())
    assert errors(find_threshold(wanted, unwanted)) == pytest.approx(least)


def test_the_temperature_is_low_but_not_zero_where_the_best_score_is_always_right() -> None:
    scores = torch.tensor([[0.5, 0.1], [0.1, 0.5]]).repeat(10, 1)
    right = torch.tensor([0, 1]).repeat(10)
    half = torch.where(torch.arange(20) % 4 < 2, right, 1 - right)
    assert 0.01 < find_temperature(scores, right) < 0.1 < find_temperature(scores, half)


def test_calibration_separates_the_make_clusters() -> None:
    features, everyday = make_clusters()
    model, calibration = fit(features, everyday), calibrate(features, everyday)
    assert (
        model.score(torch.cat(list(features.values()))).max(1).values > calibration.threshold
    ).all()
    assert (model.score(everyday).max(1).values < calibration.threshold).all()
