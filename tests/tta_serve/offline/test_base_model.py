"""The base in plain transformers, against slow loops.

That is what a form loses, grams and Fisher information.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.peft import load_peft
from adapters.library.library import Library
from tests.factories.experts import make_expert
from tests.factories.tiny_library import make_base, read_ids
from tta_serve.cli.experts import app
from tta_serve.offline.base_model import (
    PlainModel,
    measure_calibration,
    measure_change,
    measure_fishers,
    measure_grams,
)

PROMPTS = ["w1 w2 w3 w4 w5", "w9 w8 w7", "w6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    base = make_base(root / "base", 0)
    make_base(root / "tuned", 1, 0.02)
    for seed, name in enumerate(("sql", "math")):
        make_expert(root / name, base, seed=seed, layers=range(2), rank=2)
        (root / name / "examples.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def plain(made: Path) -> PlainModel:
    return PlainModel.load(Checkpoint.open(made / "base"))


def load_expert(made: Path, name: str) -> LowRankDeltas:
    return LowRankDeltas(load_peft(made / name))


def test_nothing_changes_where_nothing_is_lost_and_the_base_is_restored_to_its_bits(
    made: Path, plain: PlainModel
) -> None:
    before = {name: parameter.clone() for name, parameter in plain.model.named_parameters()}
    found = measure_change(plain, load_expert(made, "sql"), load_expert(made, "sql"), PROMPTS)
    assert found == {"logprob_change_mean": 0, "logprob_change_max": 0, "kl_mean": 0, "tokens": 6}
    assert all(
        torch.equal(parameter, before[name]) for name, parameter in plain.model.named_parameters()
    )


def test_the_change_is_that_of_two_models(made: Path, plain: PlainModel) -> None:
    found = measure_change(plain, load_expert(made, "sql"), load_expert(made, "math"), PROMPTS)
    logs = []
    for name in ("sql", "math"):
        model = AutoModelForCausalLM.from_pretrained(made / "base")
        for module, factor in load_peft(made / name).factors.items():
            model.get_submodule(module).weight.data += factor.b @ factor.a
        with torch.no_grad():
            logs.append([model(read_ids(p)).logits[0].log_softmax(-1) for p in PROMPTS[:2]])
    shifts, kls = [], []
    for p, q, prompt in zip(*logs, PROMPTS, strict=False):
        for t, word in enumerate(read_ids(prompt)[0, 1:].tolist()):
            shifts.append(abs(float(q[t, word] - p[t, word])))
            kls.append(float((p[t].exp() * (p[t] - q[t])).sum()))
    assert found["logprob_change_mean"] == pytest.approx(sum(shifts) / 6, rel=1e-4)
    assert found["logprob_change_max"] == pytest.approx(max(shifts), rel=1e-4)
    assert found["kl_mean"] == pytest.approx(sum(kls) / 6, rel=1e-3)


def test_prompts_come_in_groups_when_they_are_many(
    made: Path, plain: PlainModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_change(plain, load_expert(made, "sql"), load_expert(made, "math"), PROMPTS)
    monkeypatch.setattr("tta_serve.offline.base_model._MOST_LOGPROBS", 64 * 4)
    assert measure_change(
        plain, load_expert(made, "sql"), load_expert(made, "math"), PROMPTS
    ) == pytest.approx(whole)


def test_no_prompt_of_two_tokens_measures_nothing(made: Path, plain: PlainModel) -> None:
    assert measure_change(plain, load_expert(made, "sql"), load_expert(made, "math"), ["w1"]) == {}


def test_grams_are_sums_over_each_experts_own_inputs(made: Path, plain: PlainModel) -> None:
    both = load_expert(made, "sql"), load_expert(made, "math")
    found = measure_grams(plain, both, [PROMPTS[:1], PROMPTS[:2]])
    assert found.keys() == both[0].shapes.keys()
    for k, (name, prompts) in enumerate((("sql", PROMPTS[:1]), ("math", PROMPTS[:2]))):
        model = AutoModelForCausalLM.from_pretrained(made / "base")
        for module, factor in load_peft(made / name).factors.items():
            model.get_submodule(module).weight.data += factor.b @ factor.a
        for weight, gram in found.items():
            seen: list[torch.Tensor] = []
            layer = model.get_submodule(weight.removesuffix(".weight"))
            hook = layer.register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(inputs[0][0])
            )
            with torch.no_grad():
                for prompt in prompts:
                    model(read_ids(prompt))
            hook.remove()
            torch.testing.assert_close(gram[k], sum(x.t() @ x for x in seen), rtol=1e-4, atol=1e-5)


def test_layers_of_one_input_share_their_grams(made: Path, plain: PlainModel) -> None:
    found = measure_grams(plain, [load_expert(made, "sql")], [PROMPTS])
    layer = "model.layers.1."
    assert found[f"{layer}self_attn.q_proj.weight"] is found[f"{layer}self_attn.v_proj.weight"]
    assert found[f"{layer}mlp.up_proj.weight"] is not found[f"{layer}mlp.down_proj.weight"]


def test_fishers_are_means_of_squared_gradients(made: Path, plain: PlainModel) -> None:
    found = measure_fishers(plain, [load_expert(made, "sql")], [PROMPTS[:2]])
    model = AutoModelForCausalLM.from_pretrained(made / "base")
    for module, factor in load_peft(made / "sql").factors.items():
        model.get_submodule(module).weight.data += factor.b @ factor.a
    wanted: dict[str, torch.Tensor] = {}
    for prompt in PROMPTS[:2]:
        model.zero_grad()
        model(read_ids(prompt), labels=read_ids(prompt)).loss.backward()
        length = read_ids(prompt).shape[1] - 1  # the loss is a mean over tokens
        for weight in found:
            gradient = model.get_parameter(weight).grad * length
            wanted[weight] = wanted.get(weight, 0) + gradient**2 / 2
    for weight, fisher in found.items():
        torch.testing.assert_close(fisher[0], wanted[weight], rtol=1e-3, atol=1e-7)


def test_an_expert_without_prompts_cannot_be_calibrated(made: Path) -> None:
    with pytest.raises(ExpertError, match="'math' has no example prompts"):
        measure_calibration(
            Checkpoint.open(made / "base"),
            frozenset({"grams"}),
            {"math": load_expert(made, "math")},
            {"math": []},
        )


@pytest.mark.parametrize("method", ["regmean", "lot", "fisher"])
def test_calibrated_merges_from_the_command_line(made: Path, tmp_path: Path, method: str) -> None:
    root = f"--library={tmp_path / 'library'}"

    def tta(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, root], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    for name in ("sql", "math"):
        tta("add", str(made / name), "--name", name, "--base", str(made / "base"))
    tta("merge", "--method", method, "--experts", "sql,math", "--name", "both", "--dense")
    assert Library.open(tmp_path / "library").manifest("both").source.method == method


def test_adding_a_fine_tune_says_what_its_form_loses(made: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    where = (
        f"--base={made / 'base'}",
        f"--examples={tmp_path / 'prompts.txt'}",
        f"--library={tmp_path / 'library'}",
    )
    for name, form in (
        ("little", "--rank=1"),
        ("much", "--rank=31"),
        ("bits", "--one-bit"),
        ("all", "--dense"),
    ):
        result = CliRunner().invoke(
            app,
            ["add", str(made / "tuned"), f"--name={name}", form, *where],
            catch_exceptions=False,
        )
        assert ("logprob_change_mean" in result.output) == (name != "all"), result.output
    scores = {
        name: manifest.scores
        for name, manifest in Library.open(tmp_path / "library").manifests.items()
    }
    assert scores["all"] == {}
    assert scores["little"]["logprob_change_mean"] > scores["much"]["logprob_change_mean"] > 0
