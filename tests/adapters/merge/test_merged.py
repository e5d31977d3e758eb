"""What `merge_experts` does for every method, and what it refuses."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.deltas import Deltas
from adapters.errors import MergeError
from adapters.merge import merged as merged_deltas
from adapters.merge.merged import MergedDeltas, merge_experts
from adapters.merge.method import RESERVED
from adapters.merge.registry import METHODS, NOT_IMPLEMENTED
from tests.factories.deltas import DenseDeltas, draw, forget_factors, make_dense, make_low_rank

FIRST, SECOND = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(2))
NORM = "model.norm.weight"
ON_DELTAS = [name for name, row in METHODS.items() if row.kind != "factors"]
MUST: Mapping[str, dict[str, Any]] = {"lines": {"beta": 0.5}, "layer_swap": {"bottom": 1, "top": 0}}


def made(method: str, experts: list[Any], **given: Any) -> MergedDeltas:
    """Merge as many of the experts as a method takes, with whatever it must be given."""
    experts = experts[: METHODS[method].at_most]
    shapes = {weight: shape for expert in experts for weight, shape in expert.shapes.items()}
    base = DenseDeltas({weight: 20 * draw(*shape, seed=5) for weight, shape in shapes.items()})
    fishers = {weight: draw(len(experts), *shape, seed=6).abs() for weight, shape in shapes.items()}
    x = {
        weight: draw(len(experts), 40, shape[-1], seed=7)
        for weight, shape in shapes.items()
        if len(shape) == 2
    }
    grams = {weight: part.mT @ part for weight, part in x.items()}
    inputs: dict[str, Any] = {
        "base": base,
        "fishers": fishers,
        "grams": grams,
        "options": MUST.get(method, {}),
        **given,
    }
    return merge_experts(method, experts, **inputs)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "mean"}, "unknown method 'mean'; there are: linear, task_arithmetic"),
        ({"method": "mwa"}, "mwa is not implemented: metrics-weighted averaging"),
        ({"experts": []}, "ties merges at least 1 experts, got 0"),
        (
            {"method": "slerp", "base": DenseDeltas({FIRST: torch.zeros(4, 5)})},
            "slerp merges 2 experts, got 3",
        ),
        ({"method": "model_stock", "experts": make_dense(draw(1, 4, 5))}, "at least 2"),
        ({"weights": [1, 2]}, "2 weights for 3 experts"),
        ({"weights": [1, 2, math.nan]}, "finite"),
        ({"method": "linear", "weights": [1, 2, -1]}, "no weight may be negative"),
        ({"method": "linear", "weights": [0, 0, 0]}, "not all 0"),
        ({"method": "model_stock", "weights": [1, 1, 1]}, "takes no weights"),
        ({"method": "tsv_m", "weights": [1, 0, -1]}, "must not sum to 0"),
        (
            {"options": {"densty": 0.1}},
            "ties has no option densty; its options: density, normalize, scale",
        ),
        ({"method": "linear", "options": {"a": 1}}, "its options: none"),
        ({"method": "lines"}, "lines needs the option beta: a number"),
        ({"options": {"density": 0}}, "density must be a number above 0 and at most 1, got 0"),
        ({"options": {"density": "much"}}, "got 'much'"),
        ({"options": {"density": True}}, "got True"),
        ({"options": {"density": math.nan}}, "got nan"),
        ({"options": {"normalize": "perhaps"}}, "normalize must be true or false"),
        ({"options": {"normalize": 1}}, "normalize must be true or false"),
        ({"method": "cabs", "options": {"keep": 1.5}}, "keep must be a whole number"),
        ({"method": "cabs", "options": {"keep": "1.5"}}, "keep must be a whole number"),
        ({"method": "slerp", "experts": make_dense(draw(2, 4, 5))}, "slerp needs base"),
        (
            {"base": DenseDeltas({FIRST: torch.zeros(4, 6)})},
            r"\(4, 5\) in expert 0 and \(4, 6\) in the base",
        ),
        (
            {"base": DenseDeltas({SECOND: torch.zeros(4, 5)})},
            f"expert 0 touches {FIRST}, which the base does not have",
        ),
        (
            {"experts": [*make_dense(draw(2, 4, 5)), *make_dense(draw(1, 5, 4))]},
            r"\(5, 4\) in expert 2 and \(4, 5\) in expert 0",
        ),
        ({"method": "regmean"}, "regmean needs grams"),
        (
            {"method": "regmean", "grams": {FIRST: torch.zeros(3, 4, 4)}},
            r"must be \(3, 5, 5\), got \(3, 4, 4\)",
        ),
        ({"method": "fisher", "fishers": {}}, r"must be \(3, 4, 5\), got None"),
        ({"method": "copa"}, "copa merges low-rank experts"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_before_anything_is_computed(
    arguments: dict[str, Any], says: str
) -> None:
    experts = make_dense(draw(3, 4, 5))
    with pytest.raises(MergeError, match=says):
        merge_experts(**{"method": "ties", "experts": experts, **arguments})
    assert not any(expert.reads for expert in experts)


def test_options_are_read_from_text() -> None:
    experts = make_dense(draw(3, 4, 5))
    text = {"density": "0.5", "normalize": "False", "scale": "2"}
    assert merge_experts("ties", experts, options=text).options == {
        "density": 0.5,
        "normalize": False,
        "scale": 2.0,
    }
    assert merge_experts("cabs", experts, options={"keep": "2", "of": 8}).options == {
        "keep": 2,
        "of": 8,
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_row_says_where_a_method_is_from_and_what_it_takes(method: str) -> None:
    row = METHODS[method]
    assert row.name == method
    assert "arXiv" in row.source or any(year in row.source for year in ("1985", "2026"))
    assert row.function.__doc__
    assert row.needs <= RESERVED.keys()
    for option in row.options.values():
        assert option.default is None or option.parse(option.default) == option.default


def test_what_is_not_implemented_says_why() -> None:
    assert all(len(reason) > 40 for reason in NOT_IMPLEMENTED.values())


@pytest.mark.parametrize("method", ON_DELTAS)
def test_a_merge_touches_what_any_expert_touches_and_counts_zeros_for_the_others(
    method: str,
) -> None:
    one, other = (make_low_rank(seed, ranks) for seed, ranks in ((1, (3, 3)), (2, (3, 0))))
    merge = made(method, [one, other])
    assert merge.shapes == one.shapes
    zeros = DenseDeltas({**forget_factors(other).weights, SECOND: torch.zeros(10, 8)})
    explicit = made(method, [forget_factors(one), zeros])
    for weight in merge.shapes:
        torch.testing.assert_close(
            merge.delta(weight), explicit.delta(weight), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("method", ON_DELTAS)
def test_the_experts_are_left_as_they_are_and_only_the_weight_asked_for_is_read(
    method: str,
) -> None:
    experts = [forget_factors(make_low_rank(seed)) for seed in (1, 2)]
    before = [
        {weight: delta.clone() for weight, delta in expert.weights.items()} for expert in experts
    ]
    merge = made(method, experts)
    first = merge.delta(SECOND)
    assert all(set(expert.reads.elements()) <= {SECOND} for expert in experts)
    assert all(expert.reads[SECOND] <= 1 for expert in experts)
    assert torch.equal(first, merge.delta(SECOND))
    assert first.dtype == torch.float32
    for expert, weights in zip(experts, before, strict=True):
        assert all(torch.equal(expert.weights[weight], delta) for weight, delta in weights.items())


@pytest.mark.parametrize("method", METHODS)
def test_factors_are_the_delta(method: str) -> None:
    experts = [make_low_rank(seed, ranks=(2, 2)) for seed in (1, 2, 3)]
    merge = made(method, experts)
    factors = merge.factors(FIRST)
    row = METHODS[method]
    assert (factors is not None) == (row.kind in ("linear", "factors") or row.thin is not None)
    if factors is not None:
        torch.testing.assert_close(factors.dense(), merge.delta(FIRST), atol=1e-5, rtol=1e-5)


def test_a_sum_sets_the_factors_side_by_side_and_leaves_out_experts_of_no_weight() -> None:
    experts = [make_low_rank(seed, (rank, 1)) for seed, rank in ((1, 2), (2, 3), (3, 4))]
    merge = merge_experts("task_arithmetic", experts, [2.0, 0.0, -1.0])
    factors = merge.factors(FIRST)
    assert factors is not None
    assert factors.rank == 6
    torch.testing.assert_close(
        factors.dense(), 2 * experts[0].delta(FIRST) - experts[2].delta(FIRST)
    )
    averaged = 0.5 * (2 * experts[0].factors(FIRST).b[:, :2] - experts[2].factors(FIRST).b[:, :2])
    assert not torch.allclose(averaged @ experts[0].factors(FIRST).a, factors.dense())


def test_without_the_factors_of_one_expert_a_sum_has_none() -> None:
    experts: list[Deltas] = [make_low_rank(1), forget_factors(make_low_rank(2))]
    merge = merge_experts("linear", experts)
    assert merge.factors(FIRST) is None
    torch.testing.assert_close(
        merge.delta(FIRST), (experts[0].delta(FIRST) + experts[1].delta(FIRST)) / 2
    )
    alone = merge_experts("task_arithmetic", experts, [1.0, 0.0])
    factors = alone.factors(FIRST)
    assert factors is not None
    assert torch.equal(factors.a, make_low_rank(1).factors(FIRST).a)


def test_a_weight_that_only_experts_of_no_weight_touch_is_not_touched() -> None:
    merge = merge_experts(
        "task_arithmetic", [make_low_rank(1, (2, 0)), make_low_rank(2, (2, 2))], [1.0, 0.0]
    )
    assert list(merge.shapes) == [FIRST]
    for read in (merge.delta, merge.factors):
        with pytest.raises(KeyError):
            read(SECOND)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.vectors == "mean"])
def test_methods_of_matrices_merge_vectors_by_the_weighted_mean(method: str) -> None:
    experts: list[Any] = [
        DenseDeltas({**forget_factors(make_low_rank(seed)).weights, NORM: draw(8, seed=seed)})
        for seed in (1, 2)
    ]
    if METHODS[method].kind == "factors":
        experts = [DenseDeltas({NORM: draw(8, seed=seed)}) for seed in (1, 2)]
    merge = made(method, experts, weights=[1.0, 3.0])
    torch.testing.assert_close(merge.delta(NORM), (draw(8, seed=1) + 3 * draw(8, seed=2)) / 4)


def test_a_weight_without_grams_is_merged_by_the_weighted_mean() -> None:
    experts = [make_low_rank(1), make_low_rank(2)]
    grams = {
        FIRST: torch.stack([torch.diag(torch.arange(1.0, 9)), torch.diag(torch.arange(8.0, 0, -1))])
    }
    merge = merge_experts("regmean", experts, [1, 3], grams=grams)
    mean = merge_experts("linear", experts, [1, 3])
    torch.testing.assert_close(merge.delta(SECOND), mean.delta(SECOND))
    assert not torch.allclose(merge.delta(FIRST), mean.delta(FIRST))


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.blocks])
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_blocks_of_rows_give_the_whole(
    method: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [make_low_rank(seed) for seed in (1, 2, 3)]
    options = {"density": 1.0} if "density" in METHODS[method].options else {}
    whole = merge_experts(method, experts, options=options).delta(FIRST)
    monkeypatch.setattr(merged_deltas, "_BLOCK", 3 * 8 * rows)
    torch.testing.assert_close(merge_experts(method, experts, options=options).delta(FIRST), whole)
    assert whole.any()


@pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if "generator" in row.needs]
)
def test_draws_hang_on_the_seed_and_on_the_weight_alone(method: str) -> None:
    same = draw(40, 30, seed=1)

    def kept(seed: int, *weights: str) -> Tensor:
        return merge_experts(method, [DenseDeltas(dict.fromkeys(weights, same))], seed=seed).delta(
            weights[-1]
        )

    assert torch.equal(kept(0, FIRST), kept(0, SECOND, FIRST))
    assert not torch.equal(kept(0, FIRST), kept(1, FIRST))
    assert not torch.equal(kept(0, FIRST), kept(0, SECOND))


def test_a_merge_can_be_merged_again() -> None:
    experts = [make_low_rank(seed) for seed in (1, 2, 3)]
    ties = merge_experts("ties", experts)
    scaled = merge_experts("lines", [ties], options={"alpha": 0.2, "beta": 0.8})
    torch.testing.assert_close(scaled.delta(FIRST), 0.2 * ties.delta(FIRST))
    torch.testing.assert_close(scaled.delta(SECOND), ties.delta(SECOND))
    assert scaled.factors(FIRST) is None
    sums = merge_experts("cat", [merge_experts("cat", experts[:2]), experts[2]]).factors(FIRST)
    assert sums is not None
    torch.testing.assert_close(
        sums.dense(), sum((e.delta(FIRST) for e in experts), torch.zeros(10, 8))
    )


@pytest.mark.parametrize("weight", ["model.embed_tokens.weight", "lm_head.weight"])
def test_methods_of_linear_maps_take_the_weighted_mean_of_embeddings(weight: str) -> None:
    deltas = draw(2, 6, 5)
    for method in ("iso_c", "tsv_m", "knots"):
        merge = merge_experts(method, make_dense(deltas, weight), [1.0, 3.0]).delta(weight)
        torch.testing.assert_close(merge, 0.25 * deltas[0] + 0.75 * deltas[1])
        assert not torch.allclose(
            merge_experts(method, make_dense(deltas), [1.0, 3.0]).delta(FIRST), merge
        )
