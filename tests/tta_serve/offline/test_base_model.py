"""The base in plain transformers, against slow loops: what a form loses."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from adapters.deltas import LowRankDeltas
from adapters.files.checkpoint import Checkpoint
from adapters.files.peft import load_peft
from adapters.library.library import Library
from tests.factories.experts import make_expert
from tests.factories.tiny_library import make_base, read_ids
from tta_serve.cli.experts import app
from tta_serve.offline.base_model import PlainModel, measure_change

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
