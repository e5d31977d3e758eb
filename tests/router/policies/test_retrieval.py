"""Retrieval on features with a known answer, and what holds for the options of all policies."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.retrieval import RetrievalPolicy
from router.policy import Context
from router.registry import POLICIES, check_options, create_policy
from router.scoring.heads import choose, make_row
from tests.factories.known_features import (
    KnownFeatures,
    drop_expert,
    make_between,
    make_retrieval,
    plain_coefficients,
    train_gate,
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


def pin(known: KnownFeatures, **counts: int) -> Context:
    """Return a library without example prompts, of whose experts so many requests are kept.

    In the chat template everything reads as if it were everyday.
    """
    chat = known.everyday[0]
    pinned = {
        name: torch.stack([torch.stack([row, chat]) for row in known.clusters[name][:count]])
        for name, count in counts.items()
    }
    return replace(known.context, examples={}, pinned=pinned)


def test_experts_without_examples_are_known_by_the_requests_that_pinned_them() -> None:
    known = KnownFeatures()
    policy = asyncio.run(create_policy("retrieval", {}, pin(known, a=8, b=8, c=8)))
    for text in ("a15", "b16", "c17"):
        decision = asyncio.run(policy.route(Prompt(text), known))
        assert decision.mix == Mix.of({text[0]: 1.0})
    assert asyncio.run(policy.route(Prompt("e6"), known)).abstained


def test_an_expert_of_which_nothing_is_known_yet_is_never_chosen() -> None:
    known = KnownFeatures()
    context = pin(known, b=4, c=8)
    policy = asyncio.run(create_policy("retrieval", {"threshold": -2}, context))
    for text in ("a15", "b16", "c17"):
        decision = asyncio.run(policy.route(Prompt(text), known))
        assert decision.mix == Mix.of({"c": 1.0})
        assert set(decision.scores) == {"c"}
    few = {"b": [f"b{i}" for i in range(3)]}
    both = asyncio.run(create_policy("retrieval", {}, replace(context, examples=few)))
    found = asyncio.run(both.route(Prompt("b16"), known))
    assert found.mix == Mix.of({"b": 1.0}), "three prompts and four requests are enough"


def test_while_nothing_is_known_of_any_expert_the_base_answers() -> None:
    known = KnownFeatures()
    policy = asyncio.run(create_policy("retrieval", {}, pin(known)))
    assert isinstance(policy, RetrievalPolicy)
    decision = asyncio.run(policy.route(Prompt("a1"), known))
    assert decision.abstained
    assert "no expert has example prompts or pinned requests yet" in decision.reason
    (head,) = policy.make_heads()
    row = make_row(head, (), 3, known.context.rules)
    assert not choose([row], known.by_text["a1"].unsqueeze(0)).units.any()


def test_pinned_requests_do_not_change_experts_with_examples() -> None:
    known = KnownFeatures()
    wrong = {"a": known.clusters["b"][:, None].repeat(1, 2, 1)}
    policies = [
        asyncio.run(create_policy("retrieval", {}, replace(known.context, pinned=pinned)))
        for pinned in (None, wrong)
    ]
    scores = [asyncio.run(policy.route(Prompt("a15"), known)).scores for policy in policies]
    assert scores[0] == scores[1]


def test_inside_the_pass_both_readings_of_pinned_requests_count() -> None:
    known = KnownFeatures()
    context = pin(known, a=8, b=8, c=8)
    outside = asyncio.run(create_policy("retrieval", {}, context))
    inside = asyncio.run(create_policy("retrieval", {}, replace(context, inline=True)))
    assert isinstance(outside, RetrievalPolicy)
    assert isinstance(inside, RetrievalPolicy)
    far, near = (p.select_by(known.by_text["a15"]).scores["a"] for p in (inside, outside))
    assert far < near - 0.2, "half of what it knows reads as if it were everyday"
    (head,) = inside.make_heads()
    assert head.names == ("a", "b", "c")


def test_a_gate_leaves_experts_that_it_does_not_know_to_their_pinned_requests(
    tmp_path: Path,
) -> None:
    known = KnownFeatures()
    trained = train_gate(known, tmp_path, names="ab")
    for pinned, knows_c in ((pin(known, a=8, b=8, c=8), True), (pin(known, c=8), False)):
        context = replace(pinned, artifacts=trained.artifacts)
        gate = asyncio.run(create_policy("gate", {}, context))
        found = {text: asyncio.run(gate.route(Prompt(text), known)).mix for text in ("a15", "c15")}
        assert found["a15"] == Mix.of({"a": 1.0})
        assert (found["c15"] == Mix.of({"c": 1.0})) == knows_c


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
