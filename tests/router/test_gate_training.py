"""A gate on features with a known answer: what it learns, when it stops, and that a file keeps it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from router.gate_model import Gate
from router.gate_training import Samples, Settings, train
from router.policy import RouterError
from tests.router.test_centroids import clusters

DIGESTS = {name: name * 64 for name in "abc"}


def samples(spread: float = 0.3, per_class: int = 20) -> Samples:
    return Samples(*clusters(spread=spread, per_class=per_class))


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_tells_clusters_apart_and_everyday_from_them(hidden: int) -> None:
    gate = train(DIGESTS, 6, samples(), settings=Settings(hidden=hidden))
    x, labels = samples().rows()
    assert (gate.logits(x).argmax(-1) == labels).all()
    figures = gate.about.figures
    assert (figures["accuracy"], figures["abstained"], figures["false_abstentions"]) == (1.0, 1.0, 0.0)
    assert figures["prompts"] == 16, "a fifth of what there was"
    assert gate.names == ("a", "b", "c")
    assert gate.about.layer == 6


def test_a_prompts_forms_are_rows_and_are_held_out_together() -> None:
    flat = samples(per_class=7)
    forms = Samples({n: torch.stack([f, f + 10], 1) for n, f in flat.experts.items()}, torch.stack([flat.everyday] * 2, 1))
    parts = [part.rows() for part in forms.split()]
    assert [len(x) for x, _ in parts] == [2 * 4 * 5, 2 * 4 * 2]
    for x, labels in parts:
        of_first = x[labels == 0].reshape(-1, 2, x.shape[1])
        torch.testing.assert_close(of_first[:, 0] + 10, of_first[:, 1])
    assert train(DIGESTS, 0, forms, settings=Settings(epochs=1)).about.figures["prompts"] == 16


def test_it_stops_when_validation_gets_worse_and_keeps_the_best_weights() -> None:
    noisy, other = samples(spread=3.0), Samples(*clusters(spread=3.0, per_class=50))
    gate = train(DIGESTS, 0, noisy, other, Settings(lr=0.01, epochs=10**9, patience=20))
    best = int(gate.about.figures["epochs"])
    exactly = train(DIGESTS, 0, noisy, other, Settings(lr=0.01, epochs=best))
    x, _ = other.rows()
    assert torch.equal(gate.logits(x), exactly.logits(x))
    longer = train(DIGESTS, 0, noisy, noisy, Settings(lr=0.01, epochs=400))
    assert longer.about.figures["epochs"] > best, "on what it learned from it would have gone on"


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    one = train(DIGESTS, 0, samples(), settings=Settings(hidden=8, epochs=5))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "the program's own random numbers are as if nothing had been trained"
    other = train(DIGESTS, 0, samples(), settings=Settings(hidden=8, epochs=5))
    x, _ = samples().rows()
    assert torch.equal(one.logits(x), other.logits(x))
    assert not torch.equal(
        one.logits(x), train(DIGESTS, 0, samples(), settings=Settings(hidden=8, epochs=5, seed=1)).logits(x)
    )


def test_an_expert_with_more_prompts_is_not_preferred() -> None:
    train_on, held = (Samples(*clusters(spread=2.0, d=4, per_class=n)) for n in (30, 60))
    many = replace(train_on, experts={**train_on.experts, "a": train_on.experts["a"].repeat(20, 1)})
    x, labels = held.rows()
    gates = [train(DIGESTS, 0, s, held, Settings(lr=0.01)) for s in (train_on, many)]
    wrongly = [float((gate.logits(x).argmax(-1) == 0)[labels != 0].double().mean()) for gate in gates]
    assert wrongly[1] < wrongly[0] + 0.1


def test_the_temperature_is_the_best_for_the_validation() -> None:
    held = samples(spread=2.0, per_class=50)
    gate = train(DIGESTS, 0, samples(spread=2.0), held, Settings(lr=0.01, epochs=20))
    x, labels = held.rows()
    losses = [float(cross_entropy(gate.logits(x) * scale, labels, label_smoothing=0.002)) for scale in (0.8, 1.0, 1.25)]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("hidden", [0, 16])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, hidden: int) -> None:
    gate = train(DIGESTS, 6, samples(), settings=Settings(hidden=hidden, epochs=5))
    for kept in (train(DIGESTS, 1, samples(), settings=Settings(epochs=1)), gate):
        kept.save(tmp_path / "router")  # the second replaces the first
    loaded = Gate.load(tmp_path / "router")
    x, _ = samples().rows()
    assert torch.equal(loaded.logits(x), gate.logits(x))
    assert replace(loaded.about, tensors="") == gate.about
    assert sorted(file.name for file in (tmp_path / "router").iterdir()) == ["gate.json", "gate.safetensors"]


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for k, name in enumerate(("one", "two")):
        train(DIGESTS, 0, samples(), settings=Settings(epochs=1, seed=k)).save(tmp_path, name)
    (tmp_path / "two.safetensors").replace(tmp_path / "one.safetensors")
    with pytest.raises(RouterError, match="make the gate anew with: tta router train"):
        Gate.load(tmp_path, "one")
    with pytest.raises(RouterError, match=r"there is no .*two.safetensors; make it with: tta router train"):
        Gate.load(tmp_path, "two")
    record = tmp_path / "one.json"
    record.write_text(re.sub(r'"threshold": [^,\n]*', '"threshold": 1', record.read_text()))
    with pytest.raises(RouterError, match="threshold between 0 and 1; make the gate anew"):
        Gate.load(tmp_path, "one")
    record.write_text("{}")
    with pytest.raises(RouterError, match=r"one.json cannot be used: key .* is missing"):
        Gate.load(tmp_path, "one")


def test_too_few_prompts_are_counted() -> None:
    few = samples()
    few = Samples({**few.experts, "b": few.experts["b"][:3]}, few.everyday[:1])
    with pytest.raises(RouterError, match="at least 5 prompts of each expert and everyday ones: b has 3, everyday has 1"):
        train(DIGESTS, 0, few)
    with pytest.raises(RouterError, match=r"validating a gate takes at least 1 .*: c has 0"):
        train(DIGESTS, 0, samples(), Samples({n: f for n, f in samples().experts.items() if n != "c"}, samples().everyday))
