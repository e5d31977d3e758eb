"""What a gated policy decides before the engine gates.

That is which experts are candidates, and how they are to share a token.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bank.layer_gates import LAYER_GATES, LayerGate, write_gates
from adapters.bank.token_gating import Gating
from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.token_gated import GatedPolicy
from router.policy import Context
from router.registry import check_options, create_policy
from tests.factories.known_features import KnownFeatures, drop_expert, make_between, make_retrieval

SPARSE: dict[str, Any] = {"mode": "sparse", "temperature": 0.5, "minimum": 0.2}


def make_policy(context: Context, options: Mapping[str, Any]) -> GatedPolicy:
    policy = asyncio.run(create_policy("gated", options, context))
    assert isinstance(policy, GatedPolicy)
    return policy


def test_what_the_selector_mixes_are_candidates_and_where_it_abstains_the_base_answers() -> None:
    selector, known = make_retrieval(**SPARSE)
    known.by_text["between"] = make_between(known)
    policy = make_policy(
        known.context, {"selector": "retrieval", "selector_options": SPARSE, "top": 2}
    )
    sizes = set()
    for text in known.by_text:
        theirs, ours = (asyncio.run(one.route(Prompt(text), known)) for one in (selector, policy))
        assert replace(ours, mix=theirs.mix, gating=None) == theirs, (
            "scores, floor and reason are the selector's"
        )
        assert ours.mix == Mix.of({name: 1.0 for name, _ in theirs.mix.coefficients})
        assert ours.gating == (None if theirs.abstained else Gating("spectr", 2))
        sizes.add(len(ours.mix.coefficients))
    assert sizes >= {0, 1, 2}


def test_without_a_selector_every_expert_is_a_candidate_whatever_is_asked() -> None:
    known = KnownFeatures("abcdf")
    policy = make_policy(known.context, {"score": "arrow"})
    for text in ("a1", "e1", " "):
        decision = asyncio.run(policy.route(Prompt(text), known))
        assert decision.mix == Mix.of(dict.fromkeys("abcdf", 1.0)), (
            "more than the four that a mix may have"
        )
        assert (decision.abstained, decision.gating) == (False, Gating("arrow", 3, 1.0))
        assert not policy.should_move(decision, decision)


@pytest.mark.parametrize(
    ("options", "gating"),
    [
        ({}, Gating("spectr", 4)),
        ({"score": "arrow"}, Gating("arrow", 3, 1.0)),
        ({"score": "arrow", "temperature": None}, Gating("arrow", 3)),
        ({"temperature": 1.0, "top": 1}, Gating("spectr", 1, 1.0)),
        ({"score": "trained"}, Gating("trained", 4, 1.0)),
    ],
)
def test_what_is_not_given_is_as_published(
    options: dict[str, Any], gating: Gating, tmp_path: Path
) -> None:
    assert make_policy(add_gates(KnownFeatures().context, tmp_path, "b"), options).gating == gating


def add_gates(context: Context, folder: Path, expert: str) -> Context:
    """Return the context with trained gates of one expert."""
    gates = {expert * 64: {"layers.0.up": LayerGate(torch.ones(2), 0.0)}}
    write_gates(folder / LAYER_GATES.name, gates, replace=False)
    return replace(context, artifacts=folder)


def test_trained_gates_must_be_there_and_of_an_expert_that_is(tmp_path: Path) -> None:
    context, trained = KnownFeatures().context, {"score": "trained"}
    for without_gates in (context, replace(context, artifacts=tmp_path)):
        with pytest.raises(RouterError, match="tta router gates"):
            make_policy(without_gates, trained)
    others = add_gates(context, tmp_path, "z")
    with pytest.raises(RouterError, match="no expert here has trained gates"):
        make_policy(others, trained)
    (tmp_path / LAYER_GATES.name).write_bytes(b"{}")
    with pytest.raises(RouterError, match="cannot be read"):
        make_policy(others, trained)


def test_a_conversation_moves_as_the_selector_says() -> None:
    context = KnownFeatures().context
    policy = make_policy(context, {"selector": "retrieval", "selector_options": {"keep": 0.25}})
    before = Decision(Mix(), {"a": 0.9, "b": 0.1}, floor=0.2)
    assert not policy.should_move(before, replace(before, scores={"a": 0.5, "b": 0.7}))
    assert policy.should_move(before, replace(before, scores={"a": 0.5, "b": 0.8}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"score": "mass"}, "score: Input should be 'arrow', 'spectr' or 'trained'"),
        ({"top": 0}, "top: Input should be greater than or equal to 1"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"selector": "static"}, "unknown selector 'static'; there are: retrieval, gate"),
        ({"selector": "retrieval", "selector_options": {"tpo": 1}}, "policy type 'retrieval': tpo"),
        ({"selector_options": {"mode": "top1"}}, "selector_options are a selector's; name it"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RouterError, match=says):
        check_options("gated", options)


def test_without_experts_it_says_what_to_choose_instead() -> None:
    with pytest.raises(RouterError, match="choose the policy 'static'"):
        make_policy(drop_expert(KnownFeatures("a").context, "a"), {})
