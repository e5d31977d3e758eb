"""What experts lose that act from a later point on, against transformers, and the command."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from tests.factories.tiny_library import EXAMPLES, NAMES, load_mixed, make_library
from tests.reference import Reference
from tta_serve.cli.router import app
from tta_serve.offline.choose_activation import (
    POINTS,
    ActivationLoss,
    choose_activation,
    find_points,
    measure_activation,
)
from tta_serve.offline.mixed_model import MixedModel

TEMPLATE = "w1 w2 {{ messages[0].content }}{% if add_generation_prompt %} w4 w5{% endif %}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of a base whose chat template opens the answer by two tokens."""
    library = make_library(tmp_path_factory.mktemp("activation"))
    tokenizer = AutoTokenizer.from_pretrained(library.parent / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(library.parent / "base")
    return library


@pytest.fixture(scope="module")
def mixed(library: Path) -> MixedModel:
    return load_mixed(library, *NAMES)


def test_points_are_where_the_turn_and_the_answer_begin(library: Path, mixed: MixedModel) -> None:
    prompt = EXAMPLES["sql"][0]
    sample = mixed.make_sample(1, prompt, 6)
    assert find_points(mixed, prompt, sample) == {"start": 0, "user_turn": 2, "answer": 7}
    assert find_points(mixed, "w9 w9 w9", sample)["user_turn"] == 0, "what is not there"

    bare = load_mixed(make_library(library.parent / "bare"), "sql")
    sample = bare.make_sample(0, prompt, 6)
    assert find_points(bare, prompt, sample) == {"start": 0, "user_turn": 0, "answer": 4}


def test_losses_are_those_of_an_expert_that_acts_from_there_on(
    library: Path, mixed: MixedModel
) -> None:
    reference = Reference(library.parent / "base")
    prompt = EXAMPLES["sql"][2]
    sample = mixed.make_sample(1, prompt, 6)
    tokens = sample.ids[0].tolist()
    asked = tokens[: len(tokens) + 1 - sample.answer]
    rest = [*tokens[len(asked) :], 0]

    def predict(start: int) -> torch.Tensor:
        def acts(name: str, module: str, x: torch.Tensor) -> torch.Tensor:
            return (torch.arange(len(x)) >= start).float()

        with reference.per_token({"sql": mixed.experts[1]}, acts):
            return reference.logprobs(asked, rest)

    whole = predict(0)
    found = measure_activation(mixed, 1, [(prompt, sample)])
    for point, start in find_points(mixed, prompt, sample).items():
        later = predict(start)
        kl = float((whole.exp() * (whole - later)).sum(-1).mean())
        same = whole.argmax(-1) == later.argmax(-1)
        assert found[point].kl == pytest.approx(kl, abs=1e-3)
        assert found[point].agreement == pytest.approx(float(same.float().mean()))
        assert found[point].whole == float(same.all())
    assert found["start"] == ActivationLoss(0.0, 1.0, 1.0)
    assert found["answer"].kl > 0.01, "or nothing is compared"


def test_the_latest_point_is_chosen_from_which_hardly_anything_is_lost() -> None:
    none = ActivationLoss(0.001, 1.0, 1.0)
    losses = dict.fromkeys(POINTS, none)
    assert choose_activation(losses) == "answer"
    assert choose_activation(losses | {"answer": ActivationLoss(0.02, 1, 1)}) == "user_turn"
    few = ActivationLoss(0.001, 0.98, 0.9)
    assert choose_activation({"start": none, "user_turn": few, "answer": few}) == "start"
    assert choose_activation({"start": none, "user_turn": few, "answer": none}) == "answer"


def test_the_command_says_it_by_expert(library: Path) -> None:
    base = ("--base", str(library.parent / "base"))
    few = ("--prompts", "2", "--answer", "4")
    command = ["choose-activation", "--library", str(library), *base, *few]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["prompts"] == 2
    assert found["experts"].keys() == set(NAMES)
    assert all(row["acts_from"] in POINTS for row in found["experts"].values())
    result = CliRunner().invoke(app, [*command, "--experts", "nobody"])
    assert result.exit_code == 2
    assert "nobody" in result.output
