"""The demo's gate on people whom it was not trained on."""

from pathlib import Path

import torch

from adapters.files.checkpoint import Checkpoint
from deploy.demo.strangers import NAMES, NONE, RoutingRow, judge_choice, measure_distances
from deploy.demo.voices import TEST, TRAIN, read_spoken_voices
from router.scoring.trained_gate import Gate
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.features import EarlyFeatures
from tta_serve.offline.gate_figures import measure_gate


def test_the_gate_that_ships_knows_what_strangers_want_or_leaves_it(
    base: Path, demo_experts: Path
) -> None:
    gate = Gate.load(demo_experts / "router")
    spoken = [one for voice in read_spoken_voices(TEST).values() for one in voice]
    read = EarlyFeatures(PlainModel.load(Checkpoint.open(base)), gate.about.layer)
    labels = torch.tensor([NAMES.index(one.task) if one.task else NONE for one in spoken])
    logits = gate.compute_logits(read((one.prompt for one in spoken), chat=True)).double()
    figures = measure_gate(logits, labels, gate.about.threshold)
    assert figures["right"] > 0.85
    assert figures["left_to_base"] > 0.95
    assert figures["sure_and_wrong"] < 0.02
    assert gate.about.figures["right"] > 0.95, "on voices that were left out"
    assert gate.about.voices.keys() == {*read_spoken_voices(TRAIN), "prompts"}


def test_distances_are_in_units_of_what_classes_share() -> None:
    torch.manual_seed(0)
    wide = torch.tensor([10.0, 1.0])
    classes = [torch.randn(400, 2) * wide + torch.tensor([0.0, shift]) for shift in (0.0, 6.0)]
    x = torch.tensor([[25.0, 1.0], [-25.0, 5.0]])
    assert measure_distances(classes, x).argmin(1).tolist() == [0, 1]


def test_each_kind_of_prompt_is_judged_by_itself() -> None:
    labels = torch.tensor([0, 1, NONE, NONE, NONE])
    near = torch.tensor([False, False, False, True, True])
    choice = torch.tensor([0, 2, NONE, NONE, 3])
    assert judge_choice("a way", choice, labels, near) == RoutingRow("a way", 0.5, 1.0, 0.5)
