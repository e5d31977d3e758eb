"""What merges must know of experts, against slow loops: grams and Fisher information."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from adapters.deltas import LowRankDeltas
from adapters.errors import ExpertError
from adapters.files.checkpoint import Checkpoint
from adapters.files.peft import load_peft
from adapters.library.library import Library
from tests.factories.tiny_library import EXAMPLES, NAMES, read_ids
from tta_serve.cli.experts import app
from tta_serve.offline.answered_prompts import AnsweredPrompt
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.calibration import (
    ANSWER_TOKENS,
    MergeCalibration,
    let_answer,
    measure_fishers,
    measure_grams,
)

ANSWERS = [
    [AnsweredPrompt(read_ids("w1 w2 w3 w4"), read_ids("w4 w5")[0])],
    [
        AnsweredPrompt(read_ids("w9 w8 w7"), read_ids("w7 w6")[0]),
        AnsweredPrompt(read_ids("w5 w5 w6"), read_ids("w6 w6 w2")[0]),
    ],
]
"""Of each expert."""


@pytest.fixture(scope="module")
def plain(library: Path) -> PlainModel:
    return PlainModel.load(Checkpoint.open(library.parent / "base"))


def load_experts(library: Path) -> dict[str, LowRankDeltas]:
    return {name: LowRankDeltas(load_peft(library / name)) for name in NAMES}


def load_merged(library: Path, name: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(library.parent / "base")
    for module, factor in load_peft(library / name).factors.items():
        model.get_submodule(module).weight.data += factor.b @ factor.a
    return model


def test_grams_are_sums_over_all_that_each_expert_reads(library: Path, plain: PlainModel) -> None:
    experts = [*load_experts(library).values()]
    found = measure_grams(plain, experts, ANSWERS)
    assert found.keys() == experts[0].shapes.keys()
    for k, (name, answers) in enumerate(zip(NAMES, ANSWERS, strict=True)):
        model = load_merged(library, name)
        for weight, gram in found.items():
            seen: list[torch.Tensor] = []
            layer = model.get_submodule(weight.removesuffix(".weight"))
            hook = layer.register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(inputs[0][0])
            )
            with torch.no_grad():
                for answered in answers:
                    model(answered.ids)
            hook.remove()
            torch.testing.assert_close(gram[k], sum(x.t() @ x for x in seen), rtol=1e-4, atol=1e-4)


def test_layers_of_one_input_share_their_grams(library: Path, plain: PlainModel) -> None:
    found = measure_grams(plain, [load_experts(library)["sql"]], ANSWERS[:1])
    layer = "model.layers.1."
    assert found[f"{layer}self_attn.q_proj.weight"] is found[f"{layer}self_attn.v_proj.weight"]
    assert found[f"{layer}mlp.up_proj.weight"] is not found[f"{layer}mlp.down_proj.weight"]


def test_fishers_are_means_of_squared_gradients_of_answers_alone(
    library: Path, plain: PlainModel
) -> None:
    found = measure_fishers(plain, [load_experts(library)["sql"]], ANSWERS[1:])
    model = load_merged(library, "sql")
    wanted: dict[str, torch.Tensor] = {}
    for ids, answer in ANSWERS[1]:
        model.zero_grad()
        logs = model(ids).logits[0].log_softmax(-1)
        first = ids.shape[1] - len(answer)
        sum(logs[first + n, word] for n, word in enumerate(answer.tolist())).backward()
        for weight in found:
            gradient = model.get_parameter(weight).grad
            assert gradient is not None
            wanted[weight] = wanted.get(weight, torch.zeros(())) + gradient**2 / 2
    for weight, fisher in found.items():
        torch.testing.assert_close(fisher[0], wanted[weight], rtol=1e-3, atol=1e-6)


def test_experts_are_run_over_their_own_answers_in_the_chat_template(
    library: Path, plain: PlainModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plain.tokenizer, "chat_template", "w1 w2 {{ messages[0].content }} w3", raising=False
    )
    experts, prompts = load_experts(library), [EXAMPLES[name][:2] for name in NAMES]
    found = let_answer(plain, [*experts.values()], prompts)
    for name, asked, own in zip(NAMES, prompts, found, strict=True):
        model = load_merged(library, name)
        for prompt, answered in zip(asked, own, strict=True):
            turn = read_ids(f"w1 w2 {prompt} w3")
            length = turn.shape[1]
            assert answered.ids[:, :length].tolist() == turn.tolist()
            assert answered.ids[0, length:].tolist() == answered.wanted[:-1].tolist()
            with torch.no_grad():
                best = model(answered.ids).logits[0, length - 1 :].argmax(-1)
            assert best.tolist() == answered.wanted.tolist()
            assert len(answered.wanted) <= ANSWER_TOKENS
    assert not torch.equal(found[0][0].wanted, found[1][0].wanted)


def test_what_is_measured_is_that_of_the_answers(library: Path, plain: PlainModel) -> None:
    experts = load_experts(library)
    prompts = {name: EXAMPLES[name][:2] for name in NAMES}
    calibration = MergeCalibration(Checkpoint.open(library.parent / "base"), experts, prompts)
    answers = let_answer(plain, [*experts.values()], [*prompts.values()])
    wanted = measure_grams(plain, [*experts.values()], answers)
    found = calibration.measure(frozenset({"grams"}))
    assert found.keys() == {"grams"}
    for weight, gram in wanted.items():
        torch.testing.assert_close(found["grams"][weight], gram)
    assert calibration.measure(frozenset({"fishers", "layer"})).keys() == {"fishers"}


def test_an_expert_without_prompts_cannot_be_calibrated(library: Path) -> None:
    with pytest.raises(ExpertError, match="'math' has no example prompts"):
        MergeCalibration(
            Checkpoint.open(library.parent / "base"),
            load_experts(library),
            {"sql": EXAMPLES["sql"], "math": []},
        )


@pytest.mark.parametrize("method", ["regmean", "lot", "fisher"])
def test_calibrated_merges_from_the_command_line(
    library: Path, tmp_path: Path, method: str
) -> None:
    base = library.parent / "base"
    root = f"--library={tmp_path / 'library'}"

    def tta(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, root], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    for name in NAMES:
        tta("add", str(library / name), "--name", name, "--base", str(base))
    tta("merge", "--method", method, "--experts", "sql,math", "--name", "both", "--dense")
    assert Library.open(tmp_path / "library").manifest("both").source.method == method
