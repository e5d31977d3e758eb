"""A gate on features with a known answer: what it learns, how it is judged, and how it is kept."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from router.errors import RouterError
from router.scoring.trained_gate import Gate
from tests.factories.known_features import make_both, make_clusters
from tta_serve.offline.train_gate import GateSamples, GateSettings, train

DIGESTS = {name: name * 64 for name in "abc"}


def make_samples(spread: float = 0.3, per_class: int = 20) -> GateSamples:
    return GateSamples(*make_clusters(spread=spread, per_class=per_class))


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_tells_clusters_apart_and_everyday_from_them(hidden: int) -> None:
    gate = train(DIGESTS, 6, make_samples(), settings=GateSettings(hidden=hidden))
    x, labels = make_samples().rows()
    assert (gate.compute_logits(x).argmax(-1) == labels).all()
    figures = gate.about.figures
    wanted = {"right": 1.0, "left_to_base": 1.0, "sure_and_wrong": 0.0, "selective_accuracy": 1.0}
    assert {key: figures[key] for key in wanted} == wanted
    assert figures["prompts"] == 80, "each was left out once"
    assert gate.names == ("a", "b", "c")
    assert gate.about.layer == 6


def test_a_prompts_forms_are_rows_and_are_held_out_together() -> None:
    flat = make_samples(per_class=7)
    forms = GateSamples(
        {n: torch.stack([f, f + 10], 1) for n, f in flat.experts.items()},
        torch.stack([flat.everyday] * 2, 1),
    )
    parts = [part.rows() for part in forms.split(0)]
    assert [len(x) for x, _ in parts] == [2 * 4 * 5, 2 * 4 * 2]
    for x, labels in parts:
        of_first = x[labels == 0].reshape(-1, 2, x.shape[1])
        torch.testing.assert_close(of_first[:, 0] + 10, of_first[:, 1])
    assert train(DIGESTS, 0, forms).about.figures["prompts"] == 2 * 4 * 7


def test_prompts_that_want_two_experts_teach_and_judge_that_alone(tmp_path: Path) -> None:
    alone = make_samples()
    pairs = {("a", "c"): make_both(alone.experts["a"], alone.experts["c"])}
    both = replace(alone, both=pairs)
    parts = both.split(0)
    assert [len(part.rows_of_both()) for part in parts] == [16, 4]
    gate, without = train(DIGESTS, 0, both), train(DIGESTS, 0, alone)
    x, _ = alone.rows()
    torch.testing.assert_close(gate.compute_logits(x), without.compute_logits(x))
    told = {"two_found": 1.0, "two_false": 0.0}
    assert gate.about.figures == {**without.about.figures, **told}
    assert (gate.compute_several(both.rows_of_both()) > 0).all()
    assert (gate.compute_several(x) < 0).all()
    assert without.compute_several(x).eq(-torch.inf).all()
    gate.save(tmp_path)
    kept = Gate.load(tmp_path)
    torch.testing.assert_close(kept.compute_several(x), gate.compute_several(x))


def test_a_linear_gate_is_the_best_fit_whatever_it_begins_with() -> None:
    noisy = make_samples(spread=3.0)
    x, labels = noisy.rows()
    one, other = (
        train(DIGESTS, 0, noisy, noisy, settings=GateSettings(seed=seed)) for seed in (0, 1)
    )
    logits = one.compute_logits(x) * one.about.temperature
    again = other.compute_logits(x) * other.about.temperature
    # A constant added to all logits is no other gate.
    torch.testing.assert_close(logits.softmax(1), again.softmax(1), rtol=0, atol=1e-3)
    stronger = train(DIGESTS, 0, noisy, noisy, settings=GateSettings(penalty=1.0))
    flat = stronger.compute_logits(x) * stronger.about.temperature
    assert cross_entropy(flat, labels) > cross_entropy(logits, labels)


def test_a_voice_is_judged_by_a_gate_that_has_not_heard_it() -> None:
    plain, told = make_samples(), make_samples()
    turned = dict(zip("abc", (told.experts[name] for name in "bca"), strict=True))
    voices = {"plain": plain, "turned": GateSamples(turned, told.everyday)}
    gate = train(DIGESTS, 0, plain, voices=voices)
    heard = gate.about.voices
    assert heard.keys() == {*voices, "prompts"}
    assert (heard["turned"]["right"], heard["turned"]["left_to_base"]) == (0.0, 1.0)
    assert gate.about.figures["prompts"] == sum(own["prompts"] for own in heard.values())

    alone = train(DIGESTS, 0, plain, told)
    assert alone.about.figures["right"] == 1
    assert not alone.about.voices


def test_a_voice_without_prompts_of_an_expert_is_named() -> None:
    few = make_samples()
    few = GateSamples({name: own for name, own in few.experts.items() if name != "b"}, few.everyday)
    with pytest.raises(RouterError, match=r"the voice ann: a gate takes at least 1 .*: b has 0"):
        train(DIGESTS, 0, make_samples(), voices={"ann": few})


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    one = train(DIGESTS, 0, make_samples(), settings=GateSettings(hidden=8))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), (
        "the program's own random numbers are as if nothing had been trained"
    )
    other = train(DIGESTS, 0, make_samples(), settings=GateSettings(hidden=8))
    x, _ = make_samples().rows()
    assert torch.equal(one.compute_logits(x), other.compute_logits(x))
    assert not torch.equal(
        one.compute_logits(x),
        train(DIGESTS, 0, make_samples(), settings=GateSettings(hidden=8, seed=1)).compute_logits(
            x
        ),
    )


def test_an_expert_with_more_prompts_is_not_preferred() -> None:
    train_on, held = (GateSamples(*make_clusters(spread=2.0, d=4, per_class=n)) for n in (30, 60))
    many = replace(train_on, experts={**train_on.experts, "a": train_on.experts["a"].repeat(20, 1)})
    x, labels = held.rows()
    gates = [train(DIGESTS, 0, s, held) for s in (train_on, many)]
    wrongly = [
        float((gate.compute_logits(x).argmax(-1) == 0)[labels != 0].double().mean())
        for gate in gates
    ]
    assert wrongly[1] < wrongly[0] + 0.1


def test_the_temperature_is_the_best_for_the_validation() -> None:
    held = make_samples(spread=2.0, per_class=50)
    gate = train(DIGESTS, 0, make_samples(spread=2.0), held)
    x, labels = held.rows()
    losses = [
        float(cross_entropy(gate.compute_logits(x) * scale, labels, label_smoothing=0.002))
        for scale in (0.8, 1.0, 1.25)
    ]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("hidden", [0, 16])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, hidden: int) -> None:
    gate = train(DIGESTS, 6, make_samples(), settings=GateSettings(hidden=hidden))
    for kept in (train(DIGESTS, 1, make_samples()), gate):
        kept.save(tmp_path / "router")  # the second replaces the first
    loaded = Gate.load(tmp_path / "router")
    x, _ = make_samples().rows()
    assert torch.equal(loaded.compute_logits(x), gate.compute_logits(x))
    assert replace(loaded.about, tensors="") == gate.about
    assert sorted(file.name for file in (tmp_path / "router").iterdir()) == [
        "gate.json",
        "gate.safetensors",
    ]


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for k, name in enumerate(("one", "two")):
        train(DIGESTS, 0, make_samples(), settings=GateSettings(penalty=1.0 + k)).save(
            tmp_path, name
        )
    (tmp_path / "two.safetensors").replace(tmp_path / "one.safetensors")
    with pytest.raises(RouterError, match="make the gate anew with: tta router train"):
        Gate.load(tmp_path, "one")
    with pytest.raises(
        RouterError, match=r"there is no .*two.safetensors; make it with: tta router train"
    ):
        Gate.load(tmp_path, "two")
    record = tmp_path / "one.json"
    record.write_text(
        re.sub(r'"threshold": [^,\n]*', '"threshold": 1', record.read_text(encoding="utf-8")),
        encoding="utf-8",
    )
    with pytest.raises(RouterError, match="threshold between 0 and 1; make the gate anew"):
        Gate.load(tmp_path, "one")
    record.write_text("{}", encoding="utf-8")
    with pytest.raises(RouterError, match=r"one.json cannot be used: key .* is missing"):
        Gate.load(tmp_path, "one")


def test_too_few_prompts_are_counted() -> None:
    few = make_samples()
    few = GateSamples({**few.experts, "b": few.experts["b"][:3]}, few.everyday[:1])
    with pytest.raises(
        RouterError,
        match="at least 5 prompts of each expert and everyday ones: b has 3, everyday has 1",
    ):
        train(DIGESTS, 0, few)
    with pytest.raises(RouterError, match=r"validating a gate takes at least 1 .*: c has 0"):
        train(
            DIGESTS,
            0,
            make_samples(),
            GateSamples(
                {n: f for n, f in make_samples().experts.items() if n != "c"},
                make_samples().everyday,
            ),
        )
