"""The same numbers as mergekit, run whole on checkpoints, and as PEFT's merges of adapters."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert, LowRank
from adapters.files.checkpoint import Checkpoint
from adapters.files.finetune import TaskVector
from adapters.merge.merged import merge_experts
from tests.factories.experts import LLAMA

WEIGHTS = [0.5, 1.0, 1.5]
Weights = dict[str, Tensor]
Merge = Callable[..., Weights]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes of it that have something in common."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    base = LlamaForCausalLM(LLAMA)
    common = {name: 0.02 * torch.randn_like(p) for name, p in base.named_parameters()}
    paths = [folder / name for name in ("base", "a", "b", "c")]
    base.save_pretrained(paths[0])
    for path in paths[1:]:
        tuned = LlamaForCausalLM.from_pretrained(paths[0], dtype=torch.float32)
        for name, parameter in tuned.named_parameters():
            parameter.data += common[name] + 0.02 * torch.randn_like(parameter)
        tuned.save_pretrained(path)
    return paths


@pytest.fixture
def theirs(models: list[Path], tmp_path: Path) -> Merge:
    """Run mergekit on fine-tunes, with options for each of them and shared ones."""

    def run(
        method: str,
        tuned: list[Path],
        options: list[dict[str, Any]],
        base: Path = models[0],
        **shared: Any,
    ) -> Weights:
        sources = [
            {"model": str(path), "parameters": own}
            for path, own in zip(tuned, options, strict=True)
        ]
        config = {
            "merge_method": method,
            "models": sources,
            "parameters": shared,
            "dtype": "float32",
        }
        config |= {} if method == "linear" else {"base_model": str(base)}
        run_merge(
            MergeConfiguration.model_validate(config),
            str(tmp_path),
            MergeOptions(copy_tokenizer=False, random_seed=1),
        )
        merge = Checkpoint.open(tmp_path)
        return {weight: merge.read(weight) for weight in merge.shapes}

    return run


@pytest.fixture
def ours(models: list[Path]) -> Merge:
    def run(method: str, tuned: list[Path], weights: list[float] | None, **options: Any) -> Weights:
        base = Checkpoint.open(models[0])
        merge = merge_experts(
            method,
            [TaskVector(base, Checkpoint.open(path)) for path in tuned],
            weights,
            options,
            base=base,
        )
        assert merge.shapes.keys() == base.shapes.keys()
        return {weight: base.read(weight) + merge.delta(weight) for weight in base.shapes}

    return run


def assert_same(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_averages_and_sums(models: list[Path], ours: Merge, theirs: Merge, method: str) -> None:
    options = [{"weight": weight} for weight in WEIGHTS]
    assert_same(ours(method, models[1:], WEIGHTS), theirs(method, models[1:], options))


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_slerp(models: list[Path], ours: Merge, theirs: Merge, t: float) -> None:
    assert_same(
        ours("slerp", models[1:3], [1 - t, t]),
        theirs("slerp", models[1:3], [{}, {}], base=models[1], t=t),
    )


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock(models: list[Path], ours: Merge, theirs: Merge, count: int) -> None:
    tuned = models[1 : 1 + count]
    assert_same(ours("model_stock", tuned, None), theirs("model_stock", tuned, [{}] * count))


@pytest.mark.parametrize("normalize", [True, False])
def test_ties(models: list[Path], ours: Merge, theirs: Merge, normalize: bool) -> None:
    options = [{"weight": weight, "density": 0.3} for weight in WEIGHTS]
    merge = theirs("ties", models[1:], options, normalize=normalize, **{"lambda": 0.8})
    assert_same(
        ours("ties", models[1:], WEIGHTS, density=0.3, normalize=normalize, scale=0.8), merge
    )


@pytest.mark.parametrize("density", [0.25, 0.9])
def test_breadcrumbs(models: list[Path], ours: Merge, theirs: Merge, density: float) -> None:
    options = [{"weight": weight, "density": density, "gamma": 0.05} for weight in WEIGHTS]
    merge = theirs("breadcrumbs", models[1:], options)
    assert_same(ours("breadcrumbs", models[1:], WEIGHTS, density=density, outliers=0.05), merge)


def changes(models: list[Path], merge: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Return a fine-tune's deltas in MLPs before and after a merge, and their ranks in their rows.

    The fine-tune is merged alone; all three are [rows, 32].
    """
    tuned = TaskVector(Checkpoint.open(models[0]), Checkpoint.open(models[1]))
    names = [weight for weight in tuned.shapes if "up_proj" in weight or "gate_proj" in weight]
    before = torch.cat([tuned.delta(weight) for weight in names])
    after = torch.cat([merge[weight] - tuned.base.read(weight) for weight in names])
    return before, after, before.abs().argsort(-1).argsort(-1)


def assert_share(kept: Tensor, share: float) -> None:
    """Assert a share within five standard deviations of independent draws."""
    assert abs(float(kept.float().mean()) - share) < 5 * math.sqrt(
        share * (1 - share) / kept.numel()
    )


def test_dare_keeps_the_same_share_and_rescales_by_it_where_mergekit_rescales_to_the_same_l1_norm(
    models: list[Path], ours: Merge, theirs: Merge
) -> None:
    one = models[1:2]
    plain = theirs("dare_linear", one, [{"weight": 1.0, "density": 0.5}], rescale=False)
    rescaled = theirs("dare_linear", one, [{"weight": 1.0, "density": 0.5}])
    for merge, factor in (
        (plain, 1.0),
        (ours("dare_linear", one, [1.0], density=0.5), 2.0),
        (rescaled, None),
    ):
        before, after, _ = changes(models, merge)
        kept = after.abs() > 1e-6
        assert_share(kept, 0.5)
        if factor is None:
            torch.testing.assert_close(after.abs().sum(), before.abs().sum(), rtol=1e-4, atol=0)
        else:
            torch.testing.assert_close(after[kept], factor * before[kept], atol=1e-6, rtol=0)


def test_della_keeps_the_same_shares_of_small_and_of_large_entries(
    models: list[Path], ours: Merge, theirs: Merge
) -> None:
    one = models[1:2]
    for merge in (
        theirs("della", one, [{"weight": 1.0, "density": 0.5, "epsilon": 0.2}]),
        ours("della", one, [1.0], density=0.5, window=0.4),
    ):
        _, after, rank = changes(models, merge)
        for first in range(0, 32, 8):
            kept = after[(rank >= first) & (rank < first + 8)].abs() > 1e-6
            assert_share(kept, 0.3 + 0.4 * (first + 3.5) / 31)


@pytest.fixture(scope="module")
def adapted(models: list[Path]) -> tuple[Any, list[LowRankDeltas]]:
    """A model with three LoRAs in PEFT, of different ranks and scales, and the same as experts."""
    model: Any = LlamaForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    names, experts = ("x", "y", "z"), []
    torch.manual_seed(1)
    for name, rank in zip(names, (2, 4, 3), strict=True):
        config = LoraConfig(r=rank, lora_alpha=6, target_modules=["q_proj", "up_proj"])
        if name == "x":
            model = get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layers = {
        n.removeprefix("base_model.model."): m
        for n, m in model.named_modules()
        if hasattr(m, "lora_A")
    }
    for name in names:
        factors = {}
        for module, layer in layers.items():
            nn.init.normal_(layer.lora_B[name].weight, std=0.1)
            factors[module] = LowRank(
                layer.lora_A[name].weight.data, layer.lora_B[name].weight.data * layer.scaling[name]
            )
        experts.append(LowRankDeltas(Expert(name, factors)))
    return model, experts


@pytest.mark.parametrize(
    ("combination", "method", "weights", "theirs", "ours"),
    [
        ("cat", "cat", WEIGHTS, {}, {}),
        ("svd", "task_arithmetic", WEIGHTS, {}, {}),
        ("ties_svd", "ties", [1.0, 1.0, 1.0], {"density": 0.3}, {"density": 0.3}),
        (
            "magnitude_prune_svd",
            "breadcrumbs",
            WEIGHTS,
            {"density": 0.3},
            {"density": 0.3, "outliers": 0},
        ),
    ],
)
def test_peft(  # noqa: PLR0913 - a row of the table above
    adapted: tuple[Any, list[LowRankDeltas]],
    combination: str,
    method: str,
    weights: list[float],
    theirs: dict[str, float],
    ours: dict[str, float],
) -> None:
    model, experts = adapted
    options = theirs if combination == "cat" else {**theirs, "svd_rank": 32}
    model.add_weighted_adapter(
        ["x", "y", "z"], weights, combination, combination_type=combination, **options
    )
    merge = merge_experts(method, experts, weights, ours)
    assert len(merge.shapes) == 4
    for weight in merge.shapes:
        layer = model.get_submodule(f"base_model.model.{weight.removesuffix('.weight')}")
        torch.testing.assert_close(
            merge.delta(weight), layer.get_delta_weight(combination), atol=1e-5, rtol=1e-5
        )
