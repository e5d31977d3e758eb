"""Chance that is the same for the same prompt."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.random_control import RandomPolicy
from router.registry import create_policy
from tests.factories.known_features import KnownFeatures, make_retrieval, plain_coefficients


def draw(prompts: list[str], **options: Any) -> list[Decision]:
    known = KnownFeatures()
    policy = asyncio.run(create_policy("random_control", options, known.context))
    return [asyncio.run(policy.route(Prompt(text), known)) for text in prompts]


def test_the_same_prompt_draws_the_same_and_all_experts_are_drawn_alike() -> None:
    prompts = [f"prompt {k}" for k in range(600)]
    decisions = draw(prompts)
    assert decisions == draw(prompts)
    assert decisions != draw(prompts, seed=1)
    counts = Counter(name for decision in decisions for name, _ in decision.mix.coefficients)
    assert all(counts[name] == pytest.approx(200, abs=50) for name in "abc"), (
        counts
    )  # over four standard deviations
    assert all(decision.mix.as_dict() == {decision.choice: 1.0} for decision in decisions)


def test_several_are_drawn_in_equal_parts() -> None:
    mixes = [decision.mix for decision in draw([f"prompt {k}" for k in range(60)], experts=2)]
    assert all(plain_coefficients(mix) == [0.5, 0.5] for mix in mixes)
    assert {tuple(mix.as_dict()) for mix in mixes} == {("a", "b"), ("a", "c"), ("b", "c")}


def test_like_a_selector_it_mixes_as_much_and_abstains_as_often_but_of_others() -> None:
    policy, known = make_retrieval()
    prompts = list(known.by_text)
    real = [asyncio.run(policy.route(Prompt(text), known)) for text in prompts]
    chance = draw(prompts, like="retrieval")
    for a, b in zip(real, chance, strict=True):
        assert plain_coefficients(a.mix) == plain_coefficients(b.mix)
        assert (a.abstained, a.floor, sorted(a.scores.values())) == (
            b.abstained,
            b.floor,
            sorted(b.scores.values()),
        )
    same = sum(a.choice == b.choice for a, b in zip(real, chance, strict=True) if not a.abstained)
    assert 10 <= same <= 30, "a third of 60 by chance"


def test_a_conversation_keeps_what_it_drew() -> None:
    known = KnownFeatures()
    policy = asyncio.run(RandomPolicy.create(RandomPolicy.Options(), known.context))
    decisions = draw([f"prompt {k}" for k in range(5)])
    assert len({decision.choice for decision in decisions}) > 1
    assert not any(policy.should_move(decisions[0], now) for now in decisions)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"experts": 4}, "a mix has at most 3 here"),
        ({"like": "gate", "experts": 2}, "give it or 'experts'"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RouterError, match=says):
        draw([], **options)
