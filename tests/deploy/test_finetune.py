"""The demo's full fine-tunes: what is trained, how it is kept, and those that are shipped."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from deploy.demo import finetune, train
from deploy.demo.finetune import FINETUNES, TRAINED, pack, start_finetune, unpack
from deploy.demo.results import read_results
from tests.deploy.test_train import load_tiny, quiet

TARGETS = {"triage": 0.95, "dates": 0.9}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finetune, "load_base", partial(load_tiny, 21, tied=True))
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("task", list(TRAINED))
def test_the_chosen_weights_alone_are_trained(task: str) -> None:
    run = start_finetune(train.TrainingSettings(task, steps=4, batch=2))
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    train.optimise(run, quiet())
    changed = {
        name for name, weight in run.model.named_parameters() if not weight.equal(before[name])
    }
    chosen = TRAINED[task]
    assert changed == {name for name in before if chosen.has(name)}
    assert ("model.norm.weight" in changed) == chosen.ends
    assert ("model.embed_tokens.weight" in changed) == chosen.ends


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_finetune_ends_with_the_same_weights() -> None:
    settings = train.TrainingSettings("dates", steps=5, batch=2)
    whole, part, other = (start_finetune(settings) for _ in range(3))
    train.optimise(whole, quiet())
    for rows in islice(train.draw_batches(part), 2):
        train.train_step(part, rows)
    part.save()
    assert other.resume()
    train.optimise(other, quiet())
    assert all(whole.trained[name].equal(weight) for name, weight in other.trained.items())


def test_packed_changes_are_within_half_a_level() -> None:
    generator = torch.Generator().manual_seed(1)
    deltas = {
        "q_proj.weight": torch.randn(8, 16, generator=generator) * 1e-3,
        "embed_tokens.weight": torch.randn(32, 16, generator=generator) * 1e-3,
        "norm.weight": torch.randn(16, generator=generator),
    }
    found = unpack(pack(deltas))
    assert found.keys() == deltas.keys()
    torch.testing.assert_close(found["norm.weight"], deltas["norm.weight"].half().float())
    for name, levels in (("q_proj.weight", 7), ("embed_tokens.weight", 3)):
        step = deltas[name].abs().max() / levels
        assert (found[name] - deltas[name]).abs().max() <= step * 0.51


@pytest.mark.parametrize("task", list(TRAINED))
def test_shipped_finetunes_are_small_whole_and_good(task: str) -> None:
    file = FINETUNES / f"{task}.xz"
    assert file.stat().st_size < 5_000_000
    deltas = unpack(file.read_bytes())
    assert all(delta.any() and delta.isfinite().all() for delta in deltas.values())
    assert any("norm" in name for name in deltas) == TRAINED[task].ends
    ranks = [torch.linalg.matrix_rank(d) for n, d in deltas.items() if "down_proj" in n]
    assert min(ranks) > 500, "no low-rank factors say the same"
    assert read_results()[f"{task}-full"]["validation"] >= TARGETS[task]
