"""Learned coefficients: losses by their formulas, and what minimising them must find."""

from pathlib import Path

import pytest
import torch

from adapters.coefficient import numbers_of
from adapters.mix import MixRules
from tests.factories.tiny_library import NAMES, load_mixed, sample_answers
from tta_serve.offline.learn_entry import (
    LearnedEntry,
    LearnSettings,
    Loss,
    alignment_loss,
    entropy_loss,
    learn,
)
from tta_serve.offline.mixed_model import AnswerOutputs


def learn_from(library: Path, settings: LearnSettings, *names: str) -> LearnedEntry:
    experts = load_mixed(library, *names)
    return learn(
        experts, sample_answers(experts), MixRules(frozenset(names), experts.layers), settings
    )


def test_losses_follow_their_formulas() -> None:
    g = torch.Generator().manual_seed(0)
    target, found = (
        AnswerOutputs(torch.randn(3, 5, generator=g), torch.randn(2, 3, 4, generator=g))
        for _ in range(2)
    )
    ce, h = 0.0, 0.0
    for t in range(3):
        p = [float(x) for x in torch.softmax(target.logits[t] / 3, 0)]
        q = [float(x) for x in torch.softmax(found.logits[t] / 3, 0)]
        ce -= sum(a * float(torch.tensor(b).log()) for a, b in zip(p, q, strict=True)) / 3
        own = torch.softmax(found.logits[t], 0).tolist()
        h -= sum(a * float(torch.tensor(a).log()) for a in own) / 3
    squares = [
        float((a - b) ** 2)
        for a, b in zip(target.states.flatten(), found.states.flatten(), strict=True)
    ]
    assert float(alignment_loss(target, found)) == pytest.approx(
        9 * ce + 0.1 * sum(squares) / len(squares), rel=1e-4
    )
    assert float(entropy_loss(found)) == pytest.approx(h, rel=1e-4)


def test_alone_an_expert_is_found_again_as_it_is(library: Path) -> None:
    found = learn_from(library, LearnSettings(steps=80, rate=0.05, stay=0.0, initial=0.5), "sql")
    assert numbers_of(found.coefficients["sql"]) == pytest.approx(
        [1.0] * len(numbers_of(found.coefficients["sql"])), abs=0.1
    )
    assert found.after < found.before


@pytest.mark.parametrize("loss", ["alignment", "entropy"])
def test_the_loss_falls_and_coefficients_lie_on_the_grid_in_their_range(
    library: Path, loss: Loss
) -> None:
    found = learn_from(library, LearnSettings(loss, steps=20, rate=0.05), *NAMES)
    assert found.after < found.before
    for name in NAMES:
        values = numbers_of(found.coefficients[name])
        assert all(-2 <= c <= 2 and c == round(round(c / 0.05) * 0.05, 10) for c in values)


def test_the_same_is_learned_again_and_in_any_order_of_experts(library: Path) -> None:
    settings = LearnSettings(steps=8, rate=0.05)
    first, again, turned = (
        learn_from(library, settings, *names) for names in (NAMES, NAMES, NAMES[::-1])
    )
    assert first == again
    assert turned.coefficients == first.coefficients
    assert turned.before == pytest.approx(first.before, rel=1e-5)


def test_one_coefficient_an_expert_is_one_number(library: Path) -> None:
    found = learn_from(library, LearnSettings(steps=8, rate=0.05, per_layer=False), *NAMES)
    assert all(isinstance(c, float) for c in found.coefficients.values())


def test_what_pulls_back_to_the_start_keeps_it_there(library: Path) -> None:
    found = learn_from(library, LearnSettings(steps=8, rate=0.05, stay=1e4, initial=0.5), *NAMES)
    assert all(
        c == pytest.approx(0.5, abs=0.11)
        for name in NAMES
        for c in numbers_of(found.coefficients[name])
    )
