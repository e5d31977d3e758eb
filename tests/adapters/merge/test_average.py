"""Averages against their formulas, and what they leave as it is."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from adapters.errors import MergeError
from adapters.merge.average import layer_swap, lines, model_stock, slerp
from adapters.merge.merged import merge_experts
from tests.factories.deltas import DenseDeltas, draw, make_dense, make_low_rank

W = "model.layers.0.mlp.up_proj.weight"


def test_the_weight_average_is_that_of_the_fine_tuned_weights() -> None:
    base, deltas = draw(5, 4, seed=9), draw(3, 5, 4)
    weights = torch.tensor([1.0, 2.0, 5.0])
    tuned = ((base + deltas) * (weights / 8)[:, None, None]).sum(0)
    torch.testing.assert_close(
        base + merge_experts("linear", make_dense(deltas), [1, 2, 5]).delta(W), tuned
    )
    torch.testing.assert_close(merge_experts("linear", make_dense(deltas)).delta(W), deltas.mean(0))


def test_task_arithmetic_and_cat_are_weighted_sums_and_differ_in_the_default_weight() -> None:
    deltas = draw(3, 5, 4)
    wanted = 0.5 * deltas[0] - 1.5 * deltas[1] + 2 * deltas[2]
    for method, default in (("task_arithmetic", 0.3), ("cat", 1.0)):
        torch.testing.assert_close(
            merge_experts(method, make_dense(deltas), [0.5, -1.5, 2]).delta(W), wanted
        )
        torch.testing.assert_close(
            merge_experts(method, make_dense(deltas)).delta(W), default * deltas.sum(0)
        )


@pytest.mark.parametrize("method", ["linear", "cat"])
def test_one_expert_comes_out_as_it_went_in(method: str) -> None:
    expert = make_low_rank(1)
    alone = merge_experts(method, [expert])
    assert alone.shapes == expert.shapes
    for weight in expert.shapes:
        assert torch.equal(alone.delta(weight), expert.delta(weight))
        factors = alone.factors(weight)
        assert factors is not None
        assert torch.equal(factors.b, expert.factors(weight).b)


def test_lines_scales_with_depth_and_by_alpha_outside_of_the_layers() -> None:
    weights = torch.tensor([0.25, 0.75])
    scales = [
        float(lines(weights, alpha=0.5, beta=2.0, layer=layer, layers=5)[0] / 0.25)
        for layer in (0, 1, 4, None)
    ]
    assert scales == [0.5, 1.0, 2.5, 0.5]
    single = [
        float(lines(torch.ones(1), alpha=0.3, beta=0.7, layer=layer, layers=3))
        for layer in range(3)
    ]
    assert single == pytest.approx([0.3, 0.65, 1.0])
    assert float(lines(torch.ones(1), beta=1.0, layer=0, layers=1)) == 1.0


def test_lines_counts_the_layers_of_the_base_or_else_those_touched() -> None:
    expert = make_low_rank(1, ranks=(2, 2, 2))
    last = "model.layers.2.mlp.up_proj.weight"
    base = DenseDeltas(
        {f"model.layers.{layer}.mlp.up_proj.weight": torch.zeros(10, 8) for layer in range(5)}
    )
    for given, scale in ((None, 3.0), (base, 2.0)):
        merge = merge_experts("lines", [expert], options={"beta": 2.0}, base=given)
        torch.testing.assert_close(merge.delta(last), scale * expert.delta(last))


def test_layer_swap_takes_each_layer_from_its_expert() -> None:
    halves = torch.tensor([0.5, 0.5])

    def choice(layer: int | None, **options: int) -> str:
        first, second = layer_swap(halves, layer=layer, layers=8, **options).tolist()
        return (
            "both" if first == second == 0.5 else "first" if (first, second) == (1, 0) else "second"
        )

    assert [choice(layer, bottom=2, top=1) for layer in range(8)] == ["second"] * 2 + [
        "first"
    ] * 5 + ["second"]
    wide = [choice(layer, bottom=2, top=1, transition=1) for layer in range(8)]
    assert wide == ["second", "second", "both", "first", "first", "first", "both", "second"]
    assert [choice(layer, bottom=0, top=0, transition=3) for layer in range(8)] == ["first"] * 8
    assert choice(None, bottom=2, top=1) == "both"


def test_layer_swap_leaves_out_what_neither_touches_and_refuses_more_layers_than_there_are() -> (
    None
):
    first, second = make_low_rank(1, ranks=(2, 2, 2)), make_low_rank(2, ranks=(2, 0, 2))
    swap = merge_experts("layer_swap", [first, second], options={"bottom": 1, "top": 0})
    weights = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    assert list(swap.shapes) == weights
    assert torch.equal(swap.delta(weights[0]), second.delta(weights[0]))
    assert torch.equal(swap.delta(weights[2]), first.delta(weights[2]))
    lone = merge_experts(
        "layer_swap", [make_low_rank(1, ranks=(2, 0, 2)), second], options={"bottom": 2, "top": 0}
    )
    assert list(lone.shapes) == [weights[0], weights[2]]
    with pytest.raises(MergeError, match="there are 3"):
        merge_experts("layer_swap", [first, second], options={"bottom": 2, "top": 2})


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_slerp_goes_along_the_arc_at_constant_speed(share: float) -> None:
    a, b, base = (draw(6, 4, seed=seed) for seed in (1, 2, 3))
    b *= a.norm() / b.norm()
    point = base + slerp(
        torch.stack([a - base, b - base]), torch.tensor([1 - share, share]), base=base
    )
    torch.testing.assert_close(point.norm(), a.norm())
    whole, part = (
        torch.arccos(((a * other).sum() / a.norm() ** 2).clamp(max=1)) for other in (b, point)
    )
    torch.testing.assert_close(part, share * whole, atol=2e-3, rtol=1e-5)


def test_slerp_of_parallel_weights_is_on_the_line_and_near_it_on_the_arc_too() -> None:
    base, deltas = draw(6, 4, seed=1), 1e-3 * draw(2, 6, 4)
    weights = torch.tensor([0.3, 0.7])
    line = 0.3 * deltas[0] + 0.7 * deltas[1]
    torch.testing.assert_close(slerp(deltas.clone(), weights, base=base), line)
    arc = slerp(deltas.clone(), weights, parallel=1.0, base=base)
    torch.testing.assert_close(arc, line, atol=1e-6, rtol=0)
    assert not torch.equal(arc, line)
    same = slerp(torch.stack([deltas[0], deltas[0]]), weights, parallel=1.0, base=base)
    torch.testing.assert_close(same, deltas[0])


def slow_model_stock(deltas: Tensor) -> Tensor:
    flat = deltas.double().flatten(1)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in itertools.combinations(flat, 2)]
    cosine, count = sum(cosines) / len(cosines), len(flat)
    return (deltas.double().mean(0) * count * cosine / (1 + (count - 1) * cosine)).float()


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_model_stock_is_its_formula(experts: int) -> None:
    deltas = draw(experts, 6, 4) + 2 * draw(6, 4, seed=7)
    torch.testing.assert_close(model_stock(deltas, torch.ones(experts)), slow_model_stock(deltas))


def test_model_stock_is_the_point_towards_the_mean_that_is_nearest_to_the_centre() -> None:
    directions = torch.linalg.qr(draw(8, 8))[0]
    centre, noise = 1.5 * directions[0], 0.7 * directions[1:5]
    deltas = centre + noise
    mean = deltas.mean(0)
    merge = model_stock(deltas, torch.ones(4))
    torch.testing.assert_close(merge, mean * (mean @ centre) / (mean @ mean))
    assert (merge - centre).norm() < (mean - centre).norm()


def test_model_stock_of_equal_experts_is_one_and_of_orthogonal_or_opposed_ones_the_base() -> None:
    delta = draw(6, 4)
    torch.testing.assert_close(model_stock(torch.stack([delta] * 3), torch.ones(3)), delta)
    assert not model_stock(torch.eye(3), torch.ones(3)).any()
    assert not model_stock(torch.stack([delta, -delta]), torch.ones(2)).any()
    assert not model_stock(torch.stack([delta, 0 * delta]), torch.ones(2)).any()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "model_stock"])
def test_the_order_of_the_experts_does_not_matter(method: str) -> None:
    deltas = draw(3, 5, 4)
    torch.testing.assert_close(
        merge_experts(method, make_dense(deltas)).delta(W),
        merge_experts(method, make_dense(deltas.flip(0))).delta(W),
    )


def test_angles_are_computed_exactly_enough_for_weights_of_any_size() -> None:
    base = 1e-6 * draw(6, 4)
    tuned = torch.stack([2 * base, 2 * base.flip(0)])
    cosine = float((base * base.flip(0)).double().sum() / base.double().square().sum())
    angle = math.acos(cosine)
    wanted = (tuned[0] + tuned[1]) * math.sin(angle / 2) / math.sin(angle) - base
    torch.testing.assert_close(
        slerp(tuned - base, torch.tensor([0.5, 0.5]), base=base), wanted, atol=1e-12, rtol=1e-4
    )
