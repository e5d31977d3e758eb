"""Retrieval on features with a known answer, and what holds for the options of all policies."""

import asyncio
from dataclasses import replace

import pytest
import torch

from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.retrieval import RetrievalPolicy
from router.registry import POLICIES, check_options, create_policy
from tests.factories.known_features import (
    KnownFeatures,
    drop_expert,
    make_between,
    make_retrieval,
    plain_coefficients,
)


def test_a_clear_prompt_gets_its_expert_alone_and_an_everyday_one_the_base() -> None:
    policy, known = make_retrieval()
    for text in ("a3", "b4", "c5"):
        decision = asyncio.run(policy.route(Prompt(text), known))
        assert decision.mix == Mix.of({text[0]: 1.0})
        assert not decision.abstained
        assert decision.choice == text[0]
        assert set(decision.scores) == set("abc")
    decision = asyncio.run(policy.route(Prompt("e6"), known))
    assert decision.mix.is_base
    assert decision.abstained
    assert decision.lead_over("a") > 0, "the base is ahead of what it was chosen over"


@pytest.mark.parametrize("mode", ["top1", "top3", "sparse"])
def test_shares_are_those_of_the_mode(mode: str) -> None:
    policy, known = make_retrieval("abcdf", mode=mode, temperature=0.4, threshold=-2, minimum=0.1)
    selection = policy.select_by(make_between(known))
    shares = torch.tensor(list(selection.scores.values())).div(0.4).softmax(0)
    kept = shares > 0.1 if mode == "sparse" else shares >= shares.topk(int(mode[-1])).values.min()
    assert 0 < kept.sum() < 5, "or nothing is cut here"
    wanted = torch.where(kept, shares, 0.0) / shares[kept].sum()
    assert [selection.weights.get(n, 0.0) for n in "abcdf"] == pytest.approx(
        wanted.tolist(), abs=1e-6
    )
    assert next(iter(selection.weights)) == "a"
    coefficients = plain_coefficients(policy.decide(selection).mix)
    assert sum(coefficients) == pytest.approx(1)
    assert all(c == round(round(c / 0.05) * 0.05, 10) for c in coefficients)


def test_renaming_experts_renames_their_shares() -> None:
    policy, known = make_retrieval(mode="sparse", temperature=0.5, threshold=-2)
    new = dict(zip("abc", "bca", strict=True))
    context = replace(known.context, examples={new[n]: known.context.examples[n] for n in "abc"})
    renamed = asyncio.run(
        RetrievalPolicy.create(
            policy.Options(mode="sparse", temperature=0.5, threshold=-2), context
        )
    )
    weights = policy.select_by(make_between(known)).weights
    assert renamed.select_by(make_between(known)).weights == pytest.approx(
        {new[n]: w for n, w in weights.items()}
    )


def test_a_conversation_moves_when_another_margin_is_ahead_by_more_than_keep() -> None:
    policy, _ = make_retrieval(keep=0.25)
    before = Decision(Mix(), {"a": 0.9, "b": 0.1}, floor=0.2)
    assert not policy.should_move(before, replace(before, scores={"a": 0.8, "b": 0.3}))
    assert not policy.should_move(before, replace(before, scores={"a": 0.5, "b": 0.7}))
    assert policy.should_move(before, replace(before, scores={"a": 0.5, "b": 0.8}))
    assert not policy.should_move(
        before, replace(before, scores={"a": 0.1, "b": 0.0}, abstained=True)
    )
    assert policy.should_move(before, replace(before, scores={"a": -0.1, "b": 0.0}, abstained=True))
    assert policy.should_move(replace(before, abstained=True), before), (
        "from the base to an expert far above the floor"
    )


def test_without_user_text_it_abstains() -> None:
    policy, known = make_retrieval()
    assert asyncio.run(policy.route(Prompt("  "), known)).abstained


@pytest.mark.parametrize(
    ("examples", "everyday", "says"),
    [({"a": ["a1"]}, 20, "too few for: a, c"), ({}, 4, "at least 5 everyday prompts")],
)
def test_without_prompts_to_learn_from_it_says_which_are_missing(
    examples: dict[str, list[str]], everyday: int, says: str
) -> None:
    context = KnownFeatures().context
    theirs = {"b": context.examples["b"], **examples} if examples else context.examples
    with pytest.raises(RouterError, match=says):
        asyncio.run(
            create_policy(
                "retrieval",
                {},
                replace(context, examples=theirs, everyday=context.everyday[:everyday]),
            )
        )


def test_without_experts_it_says_what_to_choose_instead() -> None:
    context = drop_expert(KnownFeatures("a").context, "a")
    with pytest.raises(RouterError, match="choose the policy 'static'"):
        asyncio.run(create_policy("retrieval", {}, context))


@pytest.mark.parametrize("kind", POLICIES)
def test_an_unknown_option_names_the_known_ones(kind: str) -> None:
    with pytest.raises(RouterError, match="known options: "):
        check_options(kind, {"tresholt": 1})


def test_an_unknown_type_or_selector_names_the_known_ones() -> None:
    with pytest.raises(
        RouterError, match="unknown policy type 'magic'; there are: static, retrieval, gate"
    ):
        check_options("magic", {})
    with pytest.raises(
        RouterError,
        match="unknown selector 'static'; there are: retrieval, gate, activation_norm, subspace",
    ):
        check_options("random_control", {"like": "static"})
