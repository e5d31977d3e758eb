"""Sparse merges: slow versions of their formulas, counts, expectations and identities."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters.errors import MergeError
from adapters.merge import sparse
from adapters.merge.merged import merge_experts
from tests.factories.deltas import draw, make_dense

W = "model.layers.0.mlp.up_proj.weight"
Merge = Callable[..., Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_trim(delta: Tensor, kept: int) -> list[float]:
    values = delta.flatten().tolist()
    least = sorted(map(abs, values))[-kept]
    return [v if abs(v) >= least else 0.0 for v in values]


def slow_elect(
    trimmed: list[list[float]], weights: list[float], normalize: bool = True
) -> list[float]:
    merged_values = []
    for entry in zip(*trimmed, strict=True):
        terms = [(w * t, abs(w)) for w, t in zip(weights, entry, strict=True)]
        total = sum(term for term, _ in terms)
        agreeing = [(term, w) for term, w in terms if term * total > 0]
        mass = sum(w for _, w in agreeing) if normalize else 1
        merged_values.append(sum(term for term, _ in agreeing) / mass if agreeing else 0.0)
    return merged_values


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 0.5, 2.0], [1.0, 0.0, -0.5]])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_trims_elects_and_averages(weights: list[float], normalize: bool) -> None:
    deltas = draw(3, 6, 7)
    wanted = slow_elect([slow_trim(delta, int(0.3 * 42)) for delta in deltas], weights, normalize)
    options = {"density": 0.3, "normalize": normalize, "scale": 1.5}
    merge = merge_experts("ties", make_dense(deltas), weights, options).delta(W)
    torch.testing.assert_close(merge.flatten(), 1.5 * torch.tensor(wanted))


def test_ties_of_weights_longer_than_a_piece() -> None:
    deltas = draw(3, 300, 300)
    assert deltas[0].numel() > 2 * sparse._PIECE
    least = deltas.abs().flatten(1).quantile(0.8, dim=1)
    trimmed = deltas * (deltas.abs() > least[:, None, None])
    agrees = trimmed.sign() == trimmed.sum(0).sign()
    wanted = (trimmed * agrees).sum(0) / (agrees & (trimmed != 0)).sum(0).clamp(min=1)
    torch.testing.assert_close(sparse.ties(deltas.clone(), torch.ones(3)), wanted)


def test_ties_of_one_expert_trims_it_to_an_exact_count_and_no_further() -> None:
    expert = make_dense(draw(1, 10, 10))
    once = merge_experts("ties", expert, options={"density": 0.37})
    assert int((once.delta(W) != 0).sum()) == 37
    assert torch.equal(
        merge_experts("ties", [once], options={"density": 0.37}).delta(W), once.delta(W)
    )
    assert torch.equal(
        merge_experts("ties", expert, options={"density": 1}).delta(W), expert[0].delta(W)
    )


def test_entries_as_large_as_the_last_one_kept_are_kept_and_zeros_are_no_entries() -> None:
    signs = draw(2, 8, 8).sign()
    torch.testing.assert_close(sparse.ties(signs[:1].clone(), torch.ones(1)), signs[0])
    few = torch.zeros(2, 4, 4)
    few[0, 0, 0], few[1, 0, 0], few[1, 1, 1] = 3.0, 1.0, 5.0
    for method in ("ties", "localize_and_stitch"):
        merge = merge_experts(method, make_dense(few), options={"density": 0.5}).delta(W)
        assert merge[0, 0] == 2.0
        assert merge[1, 1] == 5.0
        assert int((merge != 0).sum()) == 2


def test_an_exact_tie_of_signs_elects_none() -> None:
    deltas = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])
    assert sparse.ties(deltas, torch.ones(2), density=1.0).tolist() == [0.0, 1.0]


def draws(merge: Merge, deltas: Tensor, weights: Tensor, count: int, **options: float) -> Tensor:
    """Return as many merges with other seeds, [count, *shape]."""
    return torch.stack(
        [
            merge(deltas.clone(), weights, generator=generator(seed), **options)
            for seed in range(count)
        ]
    )


def assert_expected(samples: Tensor, wanted: Tensor) -> None:
    """Assert every mean within five standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - wanted).abs() <= 5 * error + 1e-6).all()


def test_the_expectation_of_dare_is_the_sum() -> None:
    deltas, weights = draw(3, 4, 5), [0.5, 1.0, -2.0]
    merges = (
        merge_experts(
            "dare_linear", make_dense(deltas), weights, {"density": 0.3}, seed=seed
        ).delta(W)
        for seed in range(2000)
    )
    samples = torch.stack(list(merges))
    assert_expected(samples, (deltas * torch.tensor(weights)[:, None, None]).sum(0))
    assert samples.std(0).min() > 0


@pytest.mark.parametrize(("method", "scale"), [("dare_ties", 1.0), ("della", 1.1)])
def test_the_expectation_of_one_expert_is_that_expert(method: str, scale: float) -> None:
    deltas = draw(1, 4, 5)
    samples = draws(getattr(sparse, method), deltas, torch.tensor([0.3]), 2000, density=0.5)
    assert_expected(samples, scale * deltas[0])


def test_dare_keeps_its_share_and_rescales_what_it_keeps() -> None:
    delta = draw(1, 100, 100)[0]
    kept = sparse.dare_linear(delta.clone(), generator=generator())
    mask = kept != 0
    assert abs(int(mask.sum()) - 1000) < 5 * math.sqrt(10000 * 0.1 * 0.9)
    torch.testing.assert_close(kept[mask], 10 * delta[mask])


def test_experts_are_dropped_independently_of_each_other() -> None:
    kept = merge_experts(
        "dare_linear", make_dense(torch.ones(2, 100, 100)), [1.0, 10.0], {"density": 0.5}
    ).delta(W)
    counts = kept.unique(return_counts=True)
    assert counts[0].tolist() == [0.0, 2.0, 20.0, 22.0]
    assert (counts[1] - 2500).abs().max() < 5 * math.sqrt(10000 * 0.25 * 0.75)


def test_with_nothing_dropped_dare_is_task_arithmetic_or_an_election() -> None:
    deltas, weights = draw(3, 6, 7), [0.5, 1.0, 2.0]
    everything = {"density": 1.0}
    linear = merge_experts("dare_linear", make_dense(deltas), weights, everything).delta(W)
    torch.testing.assert_close(
        linear, merge_experts("task_arithmetic", make_dense(deltas), weights).delta(W)
    )
    ties = merge_experts("ties", make_dense(deltas), weights, everything).delta(W)
    assert torch.equal(
        merge_experts("dare_ties", make_dense(deltas), weights, everything).delta(W), ties
    )
    whole = merge_experts(
        "della", make_dense(deltas), weights, {**everything, "window": 0, "scale": 1}
    ).delta(W)
    assert torch.equal(whole, ties)


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_what_is_dropped_has_no_say_in_the_election(method: str) -> None:
    deltas = torch.stack([torch.full((40, 40), 1.0), torch.full((40, 40), -3.0)])
    options = {"density": 0.5, "scale": 1, **({"window": 0} if method == "della" else {})}
    values = merge_experts(method, make_dense(deltas), [1, 1], options).delta(W)
    assert sorted(values.unique().tolist()) == [-6.0, 0.0, 2.0]
    assert abs(float((values == 2).float().mean()) - 0.25) < 0.06


def test_della_keeps_an_entry_the_more_often_the_larger_it_is_in_its_row() -> None:
    deltas = draw(1, 3, 5)
    samples = draws(sparse.della, deltas, torch.ones(1), 3000, density=0.6, window=0.6, scale=1.0)
    kept = (samples != 0).float().mean(0)
    ranks = deltas[0].abs().argsort(-1).argsort(-1)
    chance = 0.3 + 0.6 * ranks / 4
    assert (kept - chance).abs().max() < 5 * math.sqrt(0.25 / 3000)
    found = samples.abs().amax(0)
    torch.testing.assert_close(found, deltas[0].abs() / chance)


@pytest.mark.parametrize("outliers", [0.0, 0.05])
def test_breadcrumbs_leaves_out_the_largest_and_the_smallest(outliers: float) -> None:
    deltas, weights = draw(3, 8, 10), [1.0, 0.5, -2.0]
    wanted = torch.zeros(80)
    for delta, weight in zip(deltas, weights, strict=True):
        order = delta.flatten().abs().argsort(descending=True)
        stays = order[int(outliers * 80) :][: int(0.25 * 80)]
        wanted[stays] += weight * delta.flatten()[stays]
    merge = merge_experts(
        "breadcrumbs", make_dense(deltas), weights, {"density": 0.25, "outliers": outliers}
    ).delta(W)
    torch.testing.assert_close(merge.flatten(), wanted)


def slow_pcb(deltas: np.ndarray, weights: list[float], density: float) -> np.ndarray:
    """Merge [experts, n] by the paper's formula, with its code's indices of the quantiles."""
    count, size = deltas.shape
    total, shares, clamped = deltas.sum(0), [], []
    for delta in deltas:
        ordered = np.sort(np.abs(delta))
        magnitude = np.clip(
            np.abs(delta), ordered[int(size * 0.0001)], ordered[int(size * 0.9999 - 1)]
        )
        intra = np.exp(
            count * ((magnitude - magnitude.min()) / (magnitude.max() - magnitude.min())) ** 2
        )
        score = intra * np.tanh(delta * total)
        score = np.maximum(score, np.sort(score)[int(size * (1 - density))])
        shares.append((score - score.min()) / (score.max() - score.min()))
        clamped.append(np.sign(delta) * magnitude)
    top = sum(w * s * d for w, s, d in zip(weights, shares, clamped, strict=True))
    return np.asarray(top / np.maximum(np.sum(shares, 0), 1e-12))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 1.2, 2.0]])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_pcb_is_its_formula(weights: list[float], size: float) -> None:
    deltas = size * draw(3, 20, 15)
    wanted = slow_pcb(deltas.flatten(1).double().numpy(), weights, 0.1)
    merge = merge_experts("pcb", make_dense(deltas), weights).delta(W).flatten()
    torch.testing.assert_close(merge, torch.from_numpy(wanted).float(), atol=1e-5 * size, rtol=1e-4)


def test_pcb_of_many_experts_and_of_one_that_changes_nothing_is_finite() -> None:
    deltas = draw(100, 12, 12)
    deltas[50:] = 0
    merge = sparse.pcb(deltas, torch.ones(100))
    assert merge.isfinite().all()
    assert merge.any()


@pytest.mark.parametrize("agree", [1, 2, 3])
def test_consensus_keeps_what_matters_to_enough_experts(agree: int) -> None:
    deltas, weights = draw(4, 6, 7), [0.3, 0.4, 0.5, 0.6]
    wanted = []
    for entry in deltas.flatten(1).t().tolist():
        active = [abs(v) > 0.4 * abs(sum(entry) - v) for v in entry]
        wanted.append(
            sum(w * v for w, v in zip(weights, entry, strict=True)) if sum(active) >= agree else 0.0
        )
    merge = merge_experts(
        "consensus", make_dense(deltas), weights, {"threshold": 0.4, "agree": agree}
    ).delta(W)
    torch.testing.assert_close(merge.flatten(), torch.tensor(wanted))


def test_consensus_with_an_open_mask_is_task_arithmetic() -> None:
    deltas = draw(3, 6, 7)
    merge = merge_experts(
        "consensus", make_dense(deltas), options={"threshold": 0, "agree": 1}
    ).delta(W)
    torch.testing.assert_close(merge, merge_experts("task_arithmetic", make_dense(deltas)).delta(W))
    assert not merge_experts("consensus", make_dense(deltas), options={"agree": 4}).delta(W).any()


def test_localize_and_stitch_averages_only_where_masks_overlap() -> None:
    deltas, weights = draw(3, 6, 7), [0.2, 0.3, 0.5]
    trimmed = [slow_trim(delta, int(0.4 * 42)) for delta in deltas]
    wanted = []
    for entry in zip(*trimmed, strict=True):
        mass = sum(w for w, v in zip(weights, entry, strict=True) if v)
        wanted.append(
            sum(w * v for w, v in zip(weights, entry, strict=True)) / mass if mass else 0.0
        )
    merge = merge_experts(
        "localize_and_stitch", make_dense(deltas), weights, {"density": 0.4}
    ).delta(W)
    torch.testing.assert_close(merge.flatten(), torch.tensor(wanted))


def test_cabs_gives_each_expert_entries_of_its_own() -> None:
    deltas = draw(3, 5, 8)
    groups = deltas.reshape(3, 5, 8)
    wanted, taken = torch.zeros(5, 8), torch.zeros(5, 8, dtype=torch.bool)
    for weight, group in zip((1.0, 2.0, 0.5), groups, strict=True):
        for row in range(5):
            free = [(abs(float(group[row, i])), i) for i in range(8) if not taken[row, i]]
            for _, i in sorted(free)[-2:]:
                wanted[row, i] += weight * group[row, i]
                taken[row, i] = True
    assert int(taken.sum()) == 3 * 5 * 2
    merge = merge_experts("cabs", make_dense(deltas), [1, 2, 0.5], {"keep": 2, "of": 8}).delta(W)
    torch.testing.assert_close(merge, wanted)


def test_cabs_keeps_the_same_share_of_a_rest_and_an_expert_takes_no_zeros() -> None:
    first = torch.zeros(13)
    first[12] = 1.0
    second = torch.arange(1.0, 14.0)
    merge = sparse.cabs(torch.stack([first, second]), torch.ones(2), keep=2, of=8)
    assert merge.nonzero().flatten().tolist() == [6, 7, 11, 12]
    assert merge[12] == 1.0
    assert merge[11] == 12.0
    short = sparse.cabs(torch.stack([second[:6], second[:6]]), torch.ones(2), keep=2, of=8)
    assert short.nonzero().flatten().tolist() == [4, 5]


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("breadcrumbs", {"density": 0.9, "outliers": 0.2}, "together more than 1"),
        ("della", {"density": 0.95, "window": 0.2}, "at most 1"),
        ("della", {"density": 0.05, "window": 0.1}, "above 0"),
        ("cabs", {"keep": 100, "of": 256}, "3 experts cannot keep 100"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    method: str, options: dict[str, float], says: str
) -> None:
    with pytest.raises(MergeError, match=says):
        merge_experts(method, make_dense(draw(3, 4, 5)), options=options)


@pytest.mark.parametrize(
    "method", ["ties", "breadcrumbs", "pcb", "consensus", "localize_and_stitch"]
)
def test_the_order_of_the_experts_does_not_matter(method: str) -> None:
    deltas, weights = draw(4, 9, 11), [0.1, 0.2, 0.3, 0.4]
    one = merge_experts(method, make_dense(deltas), weights).delta(W)
    other = merge_experts(method, make_dense(deltas.flip(0)), weights[::-1]).delta(W)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert one.any()


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "localize_and_stitch", "cabs"])
def test_an_expert_of_weight_zero_at_the_end_changes_nothing(method: str) -> None:
    deltas, weights = draw(4, 9, 30), [1.0, 2.0, 3.0, 0.0]
    with_it = merge_experts(method, make_dense(deltas), weights).delta(W)
    torch.testing.assert_close(
        with_it, merge_experts(method, make_dense(deltas[:3]), weights[:3]).delta(W)
    )


@pytest.mark.parametrize("method", [row.name for row in sparse.ROWS])
def test_a_vector_is_merged_as_a_matrix_of_one_row(method: str) -> None:
    deltas = draw(2, 1, 300)
    merge = merge_experts(method, make_dense(deltas)).delta(W)
    assert torch.equal(merge_experts(method, make_dense(deltas[:, 0])).delta(W), merge[0])
    assert merge.any()
