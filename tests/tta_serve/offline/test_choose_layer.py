"""Choosing a layer: what is measured at each, and which is recommended.

Also what the command leaves behind.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from adapters.files.checkpoint import Checkpoint
from adapters.library.library import Library
from router.errors import RouterError
from router.scoring.centroids import calibrate, fit
from tests.factories.tiny_library import EVERYDAY, EXAMPLES, make_library
from tta_serve.cli.router import app
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.choose_layer import (
    LayerRow,
    choose_layer,
    judge_layers,
    list_candidates,
    measure_losses,
)
from tta_serve.offline.compare_features import Quality, judge
from tta_serve.offline.features import EarlyFeatures
from tta_serve.offline.labelled_prompts import Prompts
from tta_serve.offline.layer_loss import measure_loss

LABELLED = [(text, name) for name, texts in EXAMPLES.items() for text in texts] + [
    (text, None) for text in EVERYDAY
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of a base with a chat template."""
    library = make_library(tmp_path_factory.mktemp("choose"))
    tokenizer = AutoTokenizer.from_pretrained(library.parent / "base")
    tokenizer.chat_template = "w1 w2 {{ messages[0].content }} w3"
    tokenizer.save_pretrained(library.parent / "base")
    return library


@pytest.fixture(scope="module")
def plain(library: Path) -> PlainModel:
    return PlainModel.load(Checkpoint.open(library.parent / "base"))


def make_row(layer: int, with_base: float, *kl: float) -> LayerRow:
    return LayerRow(
        layer,
        Quality(1.0, with_base, 1.0),
        {name: {"kl_mean": value} for name, value in zip("ab", kl, strict=True)},
    )


def test_the_lowest_layer_that_meets_both_limits_is_recommended() -> None:
    rows = [
        make_row(2, 0.90, 0.0, 0.0),
        make_row(4, 0.981, 0.0, 0.012),
        make_row(6, 0.99, 0.0, 0.0),
        make_row(8, 0.99, 0.5, 0.5),
    ]
    found = choose_layer(rows)
    assert found == choose_layer(rows[::-1])
    assert found.layer == 4
    assert choose_layer([make_row(1, 0.99, 0.0, 0.0), make_row(2, 1.0, 0.0, 0.0)]).layer == 1, (
        "0.01 below the best is near enough"
    )


def test_without_one_the_worse_lack_is_the_least() -> None:
    found = choose_layer(
        [make_row(2, 0.80, 0.0, 0.0), make_row(4, 0.97, 0.00, 0.08), make_row(6, 1.0, 0.0, 0.3)]
    )
    assert found.layer == 4
    assert "a compromise" in found.why
    assert "routes 0.030 below the best and costs 0.040 nats, most of it b" in found.why


def test_candidates_are_spread_over_the_lower_half() -> None:
    assert list_candidates(30) == [2, 4, 6, 8, 9, 11, 13, 15]
    assert list_candidates(32) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert list_candidates(2) == [0, 1]


def test_quality_is_that_of_retrieval_on_the_turns_features(plain: PlainModel) -> None:
    asked: list[str] = []

    def watch(texts: list[str]) -> Iterable[str]:
        asked.extend(texts)
        return texts

    found = judge_layers(plain, [0, 1], Prompts(EXAMPLES, EVERYDAY), LABELLED, watch)
    assert sorted(asked) == sorted([*(text for text, _ in LABELLED)] * 2), (
        "one pass serves all layers"
    )
    for layer in (0, 1):
        features = EarlyFeatures(plain, layer)
        experts, everyday = ({n: features(t) for n, t in EXAMPLES.items()}, features(EVERYDAY))
        experts = {n: torch.cat([f, features(EXAMPLES[n], chat=True)]) for n, f in experts.items()}
        everyday = torch.cat([everyday, features(EVERYDAY, chat=True)])
        model, turns = fit(experts, everyday), features([text for text, _ in LABELLED], chat=True)
        scores = model.score(turns) - calibrate(experts, everyday).threshold
        assert found[layer] == judge(scores, model.names, LABELLED)
    with pytest.raises(RouterError, match="at least 5 example prompts an expert; too few for: sql"):
        judge_layers(
            plain,
            [0],
            Prompts(EXAMPLES | {"sql": EXAMPLES["sql"][:4]}, EVERYDAY),
            LABELLED,
            watch,
        )


def test_losses_are_those_of_each_expert_on_its_own_prompts(
    library: Path, plain: PlainModel
) -> None:
    opened, told = Library.open(library), list[int]()
    experts = {name: (opened.deltas(name), texts[:3]) for name, texts in EXAMPLES.items()}
    found = measure_losses(plain, 1, experts, lambda: told.append(1))
    for name, (deltas, texts) in experts.items():
        assert found[name] == measure_loss(deltas, 1, texts, lambda: plain)
        assert found[name]["kl_mean"] > 0
    assert len(told) == 2
    with pytest.raises(RouterError, match="nothing to measure math on"):
        measure_losses(plain, 1, {"math": (opened.deltas("math"), ["w1"])}, lambda: None)


def run_tta(library: Path, file: Path, *more: object) -> Result:
    arguments = [
        "choose-layer",
        f"--library={library}",
        f"--base={library.parent / 'base'}",
        f"--prompts={file}",
        *more,
    ]
    return CliRunner().invoke(
        app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"}
    )


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "labelled.jsonl"
    file.write_text(
        "\n".join(json.dumps({"prompt": prompt, "task": task}) for prompt, task in LABELLED),
        encoding="utf-8",
    )
    return file


def test_the_command_prints_tables_a_choice_and_json_and_draws(
    library: Path, labelled: Path, tmp_path: Path
) -> None:
    result = run_tta(library, labelled, "--examples", 2, "--plot", tmp_path / "choice.png")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    lowest, upper = found["layers"]
    assert lowest["losses"]["sql"] == dict.fromkeys(lowest["losses"]["sql"], 0)
    assert upper["losses"].keys() == {"math", "sql"}
    assert (
        0
        < upper["kl_mean"]
        == pytest.approx(sum(loss["kl_mean"] for loss in upper["losses"].values()) / 2)
    )
    assert found["prompts"] == len(LABELLED)
    assert f"Layer {found['layer']}: {found['why']}" in result.output
    assert f"{upper['kl_mean']:.4f}" in result.output
    assert (
        f"{upper['losses']['sql']['energy_below']:.2f} {upper['losses']['sql']['kl_mean']:.3f}"
        in result.output
    )
    assert (tmp_path / "choice.png").read_bytes().startswith(b"\x89PNG")


def test_layers_may_be_given_and_must_be_there(library: Path, labelled: Path) -> None:
    found = json.loads(run_tta(library, labelled, "--layers", "1").output.splitlines()[-1])
    assert [row["layer"] for row in found["layers"]] == [1]
    with pytest.raises(RouterError, match="no decoder layer 2; it has 0 to 1"):
        run_tta(library, labelled, "--layers", "1,2")


def test_a_base_without_a_chat_template_is_read_bare(library: Path) -> None:
    bare = PlainModel.load(Checkpoint.open(library.parent / "base"))
    bare.tokenizer.chat_template = None
    (found,) = judge_layers(bare, [1], Prompts(EXAMPLES, EVERYDAY), LABELLED, lambda texts: texts)
    features = EarlyFeatures(bare, 1)
    examples = {name: features(texts) for name, texts in EXAMPLES.items()}, features(EVERYDAY)
    model, threshold = fit(*examples), calibrate(*examples).threshold
    assert found == judge(
        model.score(features([text for text, _ in LABELLED])) - threshold, model.names, LABELLED
    )
