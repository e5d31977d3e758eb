"""What an expert loses below a layer.

It is held against an expert that was made without it, and against plain models.
"""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner, Result

from adapters.deltas import LowRankDeltas
from adapters.expert import Expert, LowRank
from adapters.files.checkpoint import Checkpoint
from adapters.files.finetune import TaskVector
from adapters.files.peft import load_peft
from tests.factories.experts import LLAMA, make_expert, make_plain_base
from tests.factories.tiny_library import EXAMPLES, make_base, read_ids
from tta_serve.cli.experts import app
from tta_serve.offline.base_model import PlainModel, measure_change
from tta_serve.offline.layer_loss import (
    UpperLayers,
    find_routing_layer,
    measure_energy_below,
    measure_loss,
)

PROMPTS = EXAMPLES["sql"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loud random base of five layers, and two experts.

    One is of all layers, one of those from the second up, which routes.
    """
    root = tmp_path_factory.mktemp("upper")
    base, config = make_base(root / "base", 0), deepcopy(LLAMA)
    config.num_hidden_layers = 5
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(base)
    for name, lowest in (("sql", 0), ("top", 1)):
        make_expert(root / name, base, seed=5, layers=range(lowest, 5), rank=2, strength=2)
        (root / name / "examples.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def plain(root: Path) -> PlainModel:
    return PlainModel.load(Checkpoint.open(root / "base"))


def load_whole(root: Path) -> LowRankDeltas:
    return LowRankDeltas(load_peft(root / "sql"))


def load_nothing() -> PlainModel:
    raise AssertionError("no model is needed")


def test_the_upper_part_is_the_expert_without_the_layers_below(root: Path) -> None:
    deltas = load_whole(root)
    upper = UpperLayers(deltas, 1)
    assert set(upper.shapes) == {weight for weight in deltas.shapes if ".layers.0." not in weight}
    for weight in upper.shapes:
        torch.testing.assert_close(upper.delta(weight), deltas.delta(weight))
        assert upper.factors(weight) == deltas.factors(weight)
    assert UpperLayers(deltas, 0).shapes == deltas.shapes
    assert not UpperLayers(deltas, 5).shapes


def test_energy_below_is_the_share_of_the_squares_of_what_is_left_out(root: Path) -> None:
    deltas = load_whole(root)
    squares = {
        weight: float(deltas.delta(weight).double().square().sum()) for weight in deltas.shapes
    }
    below = sum(value for weight, value in squares.items() if ".layers.0." in weight)
    assert measure_energy_below(deltas, 1) == pytest.approx(below / sum(squares.values()), rel=1e-5)
    assert measure_energy_below(deltas, 0) == 0.0
    assert measure_energy_below(deltas, 5) == pytest.approx(1.0)


def test_of_a_fine_tune_what_is_in_no_decoder_layer_is_below_but_for_the_head(
    tmp_path: Path,
) -> None:
    base, tuned = (
        Checkpoint.open(make_plain_base(tmp_path / name, seed))
        for seed, name in enumerate(("base", "tuned"))
    )
    deltas = TaskVector(base, tuned)
    squares = {
        weight: float(deltas.delta(weight).double().square().sum()) for weight in deltas.shapes
    }
    above = sum(
        value
        for weight, value in squares.items()
        if ".layers." in weight or weight == "lm_head.weight"
    )
    assert (
        0
        < measure_energy_below(deltas, 0)
        == pytest.approx(1 - above / sum(squares.values()), rel=1e-5)
    )


def test_an_expert_that_changes_nothing_has_nothing_below() -> None:
    zeros = Expert(
        "none", {"model.layers.0.mlp.up_proj": LowRank(torch.zeros(1, 4), torch.zeros(4, 1))}
    )
    assert measure_energy_below(LowRankDeltas(zeros), 1) == 0


def test_the_loss_is_that_of_an_expert_trained_without_the_layers_below(
    root: Path, plain: PlainModel
) -> None:
    deltas = load_whole(root)
    cut = Expert("cut", {m: f for m, f in deltas.expert.factors.items() if ".layers.0." not in m})
    wanted = measure_change(plain, deltas, LowRankDeltas(cut), PROMPTS)
    found = measure_loss(deltas, 1, PROMPTS, lambda: plain)
    assert found == {"energy_below": measure_energy_below(deltas, 1), **wanted}
    assert found["kl_mean"] > 0.01


def test_the_kl_is_that_of_two_models(root: Path, plain: PlainModel) -> None:
    logs = []
    for lowest in (0, 1):
        model = AutoModelForCausalLM.from_pretrained(root / "base")
        for module, factor in load_whole(root).expert.factors.items():
            if int(module.split(".")[2]) >= lowest:
                model.get_submodule(module).weight.data += factor.b @ factor.a
        with torch.no_grad():
            logs.append(
                torch.cat(
                    [model(read_ids(p)).logits[0, :-1].log_softmax(-1) for p in PROMPTS]
                ).double()
            )
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(1).mean()
    assert measure_loss(load_whole(root), 1, PROMPTS, lambda: plain)["kl_mean"] == pytest.approx(
        float(kl), rel=1e-3
    )


def test_an_expert_wholly_above_loses_nothing_and_needs_no_model(root: Path) -> None:
    top = LowRankDeltas(load_peft(root / "top"))
    assert set(measure_loss(top, 1, PROMPTS, load_nothing).values()) == {0.0}
    assert measure_loss(top, 1, (), load_nothing) == {"energy_below": 0.0}
    assert measure_loss(load_whole(root), 1, (), load_nothing).keys() == {"energy_below"}


def test_a_fifth_of_the_way_up_routes(root: Path) -> None:
    assert find_routing_layer(Checkpoint.open(root / "base")) == 1


def run_add(root: Path, library: Path, folder: Path, *more: object) -> Result:
    arguments = [
        "add",
        folder,
        "--name=new",
        f"--base={root / 'base'}",
        f"--library={library}",
        *more,
    ]
    return CliRunner().invoke(
        app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"}
    )


def read_scores(library: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(
        (library / "new" / "v0001" / "expert.json").read_text(encoding="utf-8")
    )["scores"]
    return found


def test_add_says_how_much_lies_below_and_if_asked_what_it_costs(
    root: Path, plain: PlainModel, tmp_path: Path
) -> None:
    result = run_add(root, tmp_path / "a", root / "sql")
    assert result.exit_code == 0, result.output
    wanted = {
        "upper_layer": 1,
        "upper_energy_below": pytest.approx(measure_energy_below(load_whole(root), 1)),
    }
    assert read_scores(tmp_path / "a") == wanted
    assert "upper_energy_below" in result.output
    assert "logprob" not in result.output
    result = run_add(root, tmp_path / "b", root / "sql", "--check-prompts")
    assert result.exit_code == 0, result.output
    found = measure_change(plain, load_whole(root), UpperLayers(load_whole(root), 1), PROMPTS)
    assert read_scores(tmp_path / "b") == wanted | {
        f"upper_{name}": pytest.approx(value) for name, value in found.items()
    }
    assert f"{found['kl_mean']:.4g}" in result.output


def test_add_measures_what_was_kept_and_what_of_it_lies_below(
    root: Path, plain: PlainModel, tmp_path: Path
) -> None:
    assert run_add(root, tmp_path, root / "sql", "--rank=1", "--check-prompts").exit_code == 0
    found = read_scores(tmp_path)
    assert found["logprob_change_mean"] > 0
    assert found["upper_logprob_change_mean"] > 0
    assert found["logprob_change_mean"] != found["upper_logprob_change_mean"]


def test_add_of_an_expert_above_says_0(root: Path, tmp_path: Path) -> None:
    assert run_add(root, tmp_path, root / "top", "--check-prompts").exit_code == 0
    names = ("energy_below", "logprob_change_mean", "logprob_change_max", "kl_mean")
    assert read_scores(tmp_path) == {"upper_layer": 1, **{f"upper_{name}": 0 for name in names}}


def test_what_cannot_be_checked_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(
        root / "top", tmp_path / "silent", ignore=shutil.ignore_patterns("examples.txt")
    )
    assert "needs prompts" in run_add(root, tmp_path, tmp_path / "silent", "--check-prompts").output
    assert (
        "leave --one-bit and --dense out"
        in run_add(root, tmp_path, root / "base", "--dense", "--check-prompts").output
    )
