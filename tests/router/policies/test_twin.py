"""Twin-Merging's policy on known features: the shared part is always on, and never a class."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.mix import Mix
from router.decision import Prompt
from router.errors import RouterError
from router.policies.twin import TwinPolicy
from router.policy import Context
from router.registry import check_options, create_policy
from tests.factories.known_features import (
    KnownFeatures,
    make_between,
    plain_coefficients,
    train_gate,
)
from tests.factories.twins import with_twins

SHARED = {"t-shared": 1.0}


def make_policy(context: Context, **options: Any) -> TwinPolicy:
    policy = asyncio.run(create_policy("twin", {"prefix": "t", **options}, context))
    assert isinstance(policy, TwinPolicy)
    return policy


def decide(policy: Any, known: KnownFeatures, text: str) -> Any:
    return asyncio.run(policy.route(Prompt(text), known))


def test_a_clear_prompt_gets_its_expert_back_and_an_everyday_one_what_all_share() -> None:
    known = KnownFeatures()
    policy = make_policy(with_twins(known.context, "abc"))
    for name in "abc":
        decision = decide(policy, known, f"{name}3")
        assert decision.mix == Mix.of({**SHARED, f"t-{name}": 1.0})
        assert decision.scores.keys() == {"t-a", "t-b", "t-c"}
    everyday = decide(policy, known, "e6")
    assert (everyday.mix, everyday.abstained) == (Mix.of(SHARED), True)
    assert everyday.reason.endswith("what the experts share answers")
    assert decide(policy, known, " ").mix == Mix.of(SHARED)


def test_the_base_answers_what_no_expert_fits_if_it_is_told_to() -> None:
    known = KnownFeatures()
    policy = make_policy(with_twins(known.context, "abc"), abstain="base")
    assert decide(policy, known, "e6").mix.is_base
    assert decide(policy, known, "b1").mix == Mix.of({**SHARED, "t-b": 1.0})


def test_weights_are_the_selectors_shares(tmp_path: Path) -> None:
    known = KnownFeatures("abcdf")
    known.by_text["between"] = make_between(known)
    options = {"mode": "sparse", "minimum": 0.0, "temperature": 0.5, "threshold": -2}
    policy = make_policy(with_twins(known.context, "abcdf"), selector_options=options)
    plain = asyncio.run(create_policy("retrieval", options, known.context))
    parts = decide(policy, known, "between").mix.as_dict()
    assert parts.pop("t-shared") == 1.0
    assert {name.removeprefix("t-"): c for name, c in parts.items()} == decide(
        plain, known, "between"
    ).mix.as_dict()
    assert len(parts) == 4, "besides the shared one"
    assert sum(plain_coefficients(Mix.of(parts))) == pytest.approx(1)


def test_a_gate_chooses_among_the_parts_that_it_was_trained_for(tmp_path: Path) -> None:
    known = KnownFeatures()
    known.context = with_twins(known.context, "abc")
    known.clusters = {f"t-{name}": rows for name, rows in known.clusters.items()}
    context = train_gate(known, tmp_path, names=["t-a", "t-b", "t-c"])  # type: ignore[arg-type]
    policy = make_policy(context, selector="gate")
    assert decide(policy, known, "c2").mix == Mix.of({**SHARED, "t-c": 1.0})


def test_retrieval_over_parts_alone_chooses_among_them_and_never_the_shared_one() -> None:
    known = KnownFeatures()
    context = with_twins(known.context, "ab")
    policy = asyncio.run(create_policy("retrieval", {}, context))
    decision = decide(policy, known, "a3")
    assert decision.mix == Mix.of({**SHARED, "t-a": 1.0})
    assert decision.scores.keys() == {"t-a", "t-b", "c"}
    assert decide(policy, known, "c3").mix == Mix.of({"c": 1.0})
    uniform = asyncio.run(create_policy("static", {"uniform": True}, context))
    third = uniform.route(Prompt("x"), known)
    assert asyncio.run(third).mix == Mix.of({**SHARED, "t-a": 0.35, "t-b": 0.35, "c": 0.35})


def test_parts_whose_experts_are_there_themselves_are_chosen_by_twin_alone() -> None:
    known = KnownFeatures("ab")
    whole, parts = known.context, with_twins(known.context, "ab")
    rules = replace(parts.rules, names=parts.rules.names | {"a", "b"}, aside=parts.rules.names)
    context = replace(
        parts,
        rules=rules,
        examples={**whole.examples, **parts.examples},
        digests={**whole.digests, **parts.digests},
    )
    policy = asyncio.run(create_policy("retrieval", {}, context))
    assert decide(policy, known, "a3").mix == Mix.of({"a": 1.0})
    assert decide(make_policy(context), known, "a3").mix == Mix.of({**SHARED, "t-a": 1.0})


def test_a_prefix_that_is_not_there_names_those_that_are() -> None:
    context = with_twins(KnownFeatures().context, "ab")
    with pytest.raises(RouterError, match="no parts with the prefix 'u', there are: t"):
        make_policy(context, prefix="u")
    with pytest.raises(RouterError, match="unknown selector 'static'"):
        check_options("twin", {"prefix": "t", "selector": "static"})


def test_tokens_are_not_shared_out_among_parts() -> None:
    known = KnownFeatures()
    with pytest.raises(RouterError, match="t-a, t-b, t-c are parts of Twin-Merging"):
        asyncio.run(create_policy("gated", {}, with_twins(known.context, "abc")))
    gated = asyncio.run(create_policy("gated", {}, with_twins(known.context, "ab")))
    assert decide(gated, known, "a1").mix == Mix.of({"c": 1.0})


def test_heads_have_the_shared_part_beside_what_they_choose() -> None:
    context = replace(with_twins(KnownFeatures().context, "abc"), inline=True)
    for abstain, alone in (("shared", True), ("base", False)):
        policy = make_policy(context, abstain=abstain)
        (head,) = policy.finish_heads(policy.selector.make_heads())  # type: ignore[attr-defined]
        assert (head.beside, head.alone) == ("t-shared", alone)
        assert head.names == ("t-a", "t-b", "t-c")
