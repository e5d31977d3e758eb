"""Twin-Merging: the shared expert and the exclusive ones together are the experts again."""

import pytest
import torch
from torch.testing import assert_close

from adapters.deltas import Deltas
from adapters.errors import MergeError
from adapters.merge.merged import merge_experts
from adapters.merge.twin import build_twins
from tests.factories.deltas import make_low_rank

LAYERS = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")


def made_library() -> dict[str, Deltas]:
    """Return three experts, of which one leaves the second layer alone."""
    return {
        "poems": make_low_rank(0, (2, 3)),
        "sums": make_low_rank(1, (4, 0)),
        "code": make_low_rank(2, (1, 2)),
    }


def mixed(
    shared: Deltas, exclusive: dict[str, Deltas], weights: dict[str, float], weight: str
) -> torch.Tensor:
    """Return s + sum_k w_k v_k of one weight."""
    total = shared.delta(weight)
    for name, coefficient in weights.items():
        total = total + coefficient * exclusive[name].delta(weight)
    return total


def test_the_shared_expert_is_lambda_times_the_sum() -> None:
    experts = made_library()
    shared, _ = build_twins(experts, shared_weight=0.25)
    for weight, holders in zip(LAYERS, (["poems", "sums", "code"], ["poems", "code"]), strict=True):
        expected = 0.25 * sum(
            (experts[name].delta(weight) for name in holders), start=torch.zeros(10, 8)
        )
        assert_close(shared.delta(weight), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties", "tsv_m", "model_stock"])
def test_one_expert_at_full_weight_is_that_expert_and_none_is_the_shared_one(method: str) -> None:
    experts = made_library()
    shared, exclusive = build_twins(experts, method=method)
    assert list(exclusive) == list(experts)
    for weight in LAYERS:
        assert_close(mixed(shared, exclusive, {}, weight), shared.delta(weight))
        for name, expert in experts.items():
            original = expert.delta(weight) if weight in expert.shapes else torch.zeros(10, 8)
            assert_close(
                mixed(shared, exclusive, {name: 1.0}, weight), original, rtol=1e-4, atol=1e-5
            )


def test_a_method_of_means_is_scaled_too() -> None:
    experts = made_library()
    shared, _ = build_twins(experts, shared_weight=0.5, method="ties")
    whole = merge_experts("ties", list(experts.values()))
    assert_close(shared.delta(LAYERS[0]), 0.5 * whole.delta(LAYERS[0]))


def test_of_experts_known_by_factors_all_are_known_so() -> None:
    shared, exclusive = build_twins(made_library())
    for deltas in (shared, *exclusive.values()):
        for weight in deltas.shapes:
            factors = deltas.factors(weight)
            assert factors is not None
            assert_close(factors.dense(), deltas.delta(weight), rtol=1e-4, atol=1e-5)
    sums = exclusive["sums"].factors(LAYERS[0])
    assert sums is not None
    assert sums.rank == 4 + 7


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(MergeError, match="unknown method 'soup'"):
        build_twins(made_library(), method="soup")
