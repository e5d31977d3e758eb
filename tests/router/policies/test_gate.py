"""The gate as a policy: what it knows, what has gone, and what was added."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bank.token_gating import Gating
from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.gate import GatePolicy
from router.policy import Context
from router.registry import create_policy
from router.scoring.trained_gate import Gate
from tests.factories.known_features import KnownFeatures, drop_expert, train_gate


def decide_all(known: KnownFeatures, context: Context, **options: Any) -> dict[str, Decision]:
    """Decide for all known prompts, by prompt."""
    policy = asyncio.run(create_policy("gate", options, context))
    return {text: asyncio.run(policy.route(Prompt(text), known)) for text in known.by_text}


def read_choices(of: Mapping[str, Decision]) -> dict[str, str | None]:
    return {text: decision.choice for text, decision in of.items()}


def list_right_choices(known: KnownFeatures) -> dict[str, str | None]:
    return {text: text[0] if text[0] in known.clusters else None for text in known.by_text}


def test_a_clear_prompt_gets_its_expert_alone_and_an_everyday_one_the_base(tmp_path: Path) -> None:
    known = KnownFeatures()
    found = decide_all(known, train_gate(known, tmp_path))
    assert read_choices(found) == list_right_choices(known)
    assert found["a3"].mix == Mix.of({"a": 1.0})
    assert found["e3"].mix.is_base
    for decision in found.values():
        assert sum(decision.scores.values()) + decision.floor == pytest.approx(1)


@pytest.mark.parametrize("threshold", [None, 0.02, 0.5, 0.98])
def test_it_abstains_where_the_chance_of_any_expert_is_below_the_threshold(
    tmp_path: Path, threshold: float | None
) -> None:
    known = KnownFeatures(spread=2.0)
    found = decide_all(known, train_gate(known, tmp_path), threshold=threshold)
    gate = Gate.load(tmp_path)
    cut = threshold or gate.about.threshold
    for text, decision in found.items():
        p = gate.compute_logits(known.by_text[text]).softmax(0)
        assert decision.abstained == bool(1 - p[-1] < cut)
        best = float(p[:-1].max() / p[:-1].topk(3).values.sum())
        assert decision.abstained or decision.mix.as_dict()[str(decision.choice)] == pytest.approx(
            best, abs=0.06
        )
        assert not decision.abstained or decision.lead_over("a") > 0


def test_at_most_top_experts_are_mixed(tmp_path: Path) -> None:
    known = KnownFeatures(spread=3.0)
    context = train_gate(known, tmp_path)
    most = [
        max(len(d.mix.coefficients) for d in decide_all(known, context, top=top).values())
        for top in (1, 3)
    ]
    assert most[0] == 1 < most[1]


def test_two_experts_answer_in_turn_who_wants_both_and_one_who_wants_one(tmp_path: Path) -> None:
    known = KnownFeatures()
    context = train_gate(known, tmp_path, both=True)
    found = decide_all(known, context, segments=0.5, top=2)
    alone = decide_all(known, context, top=1)
    for text, decision in found.items():
        assert decision.mix == alone[text].mix
        answer = {decision.mix, *decision.then}
        if text.startswith("ab"):
            assert answer == {Mix.of({"a": 1.0}), Mix.of({"b": 1.0})}
        else:
            assert not decision.then


@pytest.mark.parametrize("segments", [0.05, 0.5, 0.95])
def test_how_sure_it_must_be_that_two_are_wanted_is_an_option(
    tmp_path: Path, segments: float
) -> None:
    known = KnownFeatures(spread=2.0)
    context = train_gate(known, tmp_path, both=True)
    gate = Gate.load(tmp_path)
    several = set()
    for text, decision in decide_all(known, context, segments=segments).items():
        p = gate.compute_several(known.by_text[text]).sigmoid()
        assert not decision.then or p >= segments
        several.add(bool(decision.then))
    assert several == {False, True}


def test_a_gate_that_heard_no_request_for_two_makes_no_segments(tmp_path: Path) -> None:
    known = KnownFeatures()
    with pytest.raises(RouterError, match=r"<expert>\+<expert>\.txt"):
        decide_all(known, train_gate(known, tmp_path), segments=0.5)


def test_candidates_for_gating_answer_in_one_segment() -> None:
    decision = Decision(Mix.of({"a": 1.0}), then=(Mix.of({"b": 1.0}),))
    assert decision.with_gating(Gating("arrow", 1, 1.0)).then == ()


def test_an_expert_that_was_added_or_replaced_is_left_to_retrieval(tmp_path: Path) -> None:
    known = KnownFeatures("abcd")
    context = train_gate(known, tmp_path)
    assert asyncio.run(create_policy("gate", {}, context)) is not None
    found = decide_all(known, replace(context, digests={**context.digests, "b": "new"}))
    assert read_choices(found) == list_right_choices(known)
    by_retrieval = {
        text[0] for text, decision in found.items() if "by retrieval" in decision.reason
    }
    assert by_retrieval == {"b", "d"}
    for text in ("a1", "b1", "d1", "e1"):
        assert found[text].lead_over("c") > 0.5, "far ahead, in the gate's own units"
    assert set(found["a1"].scores) == {"a", "c"}


def test_an_expert_that_is_gone_is_never_chosen(tmp_path: Path) -> None:
    known = KnownFeatures()
    found = decide_all(known, drop_expert(train_gate(known, tmp_path), "c"))
    assert all(set(decision.scores) == {"a", "b"} for decision in found.values())
    kept = {text: name for text, name in read_choices(found).items() if text[0] != "c"}
    assert kept == {
        text: name for text, name in list_right_choices(known).items() if text[0] != "c"
    }


def test_without_any_expert_that_it_knows_retrieval_decides(tmp_path: Path) -> None:
    known = KnownFeatures()
    found = decide_all(
        known, replace(train_gate(known, tmp_path), digests=dict.fromkeys("abc", "new"))
    )
    assert read_choices(found) == list_right_choices(known)


def test_a_conversation_moves_when_half_of_all_chance_has(tmp_path: Path) -> None:
    known = KnownFeatures()
    policy = asyncio.run(create_policy("gate", {}, train_gate(known, tmp_path)))
    before = Decision(Mix(), {"a": 0.8, "b": 0.1}, floor=0.1)
    assert not policy.should_move(before, replace(before, scores={"a": 0.3, "b": 0.6}))
    assert policy.should_move(before, replace(before, scores={"a": 0.1, "b": 0.8}))
    assert policy.should_move(
        before, replace(before, scores={"a": 0.1, "b": 0.1}, abstained=True, floor=0.8)
    )


def test_a_gate_of_other_features_is_refused(tmp_path: Path) -> None:
    known = KnownFeatures()
    with pytest.raises(RouterError, match="of layer 1, the server reads 32 of layer 0"):
        asyncio.run(create_policy("gate", {}, train_gate(known, tmp_path, layer=1)))
    context = train_gate(known, tmp_path)
    known.by_text["Hello"] = torch.zeros(8)
    with pytest.raises(RouterError, match="reads 32 features of layer 0, the server reads 8"):
        asyncio.run(create_policy("gate", {}, context))


@pytest.mark.parametrize("place", [None, "empty"])
def test_without_a_gate_it_says_how_to_make_one(tmp_path: Path, place: str | None) -> None:
    context = replace(KnownFeatures().context, artifacts=tmp_path / place if place else None)
    with pytest.raises(RouterError, match="tta router train"):
        asyncio.run(GatePolicy.create(GatePolicy.Options(), context))
