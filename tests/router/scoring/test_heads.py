"""What heads decide as tensors, against what the policies decide number by number."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policies.selector import InlineSelector
from router.registry import create_policy
from router.scoring.heads import Head, Heads, choose, make_empty_row, make_row, should_move
from tests.factories.known_features import KnownFeatures, train_gate

CAPACITY = 6


def stack(head: Head, rules: MixRules, rows: int, experts: Any = None) -> Heads:
    one = make_row(head, head.names if experts is None else experts, CAPACITY, rules)
    return Heads(*(part.expand(rows, *part.shape[1:]) for part in one))


def assert_decide_alike(policy: InlineSelector, known: KnownFeatures) -> None:
    """Check that the heads decide as the policy does for every prompt, and for the same scores."""
    texts, heads = list(known.by_text), policy.make_heads()
    features = torch.stack([known.by_text[text] for text in texts])
    choice = choose([stack(head, policy.rules, len(texts)) for head in heads], features)
    parts = (choice.scores, choice.units, choice.several)
    rows = zip(*(part.tolist() for part in parts), strict=True)
    for text, (scores, units, several), number in zip(texts, rows, choice.head, strict=True):
        names, wanted = heads[int(number)].names, asyncio.run(policy.route(Prompt(text), known))
        assert (
            policy.rules.mix({n: u * policy.rules.grid for n, u in zip(names, units, strict=False)})
            == wanted.mix
        )
        of: Mapping[str, float] = dict(zip(names, scores, strict=False))
        found = policy.judge(int(number), of, scores[-1], several)
        assert policy.list_later_mixes(found) == wanted.then
        assert found.scores == pytest.approx(dict(wanted.scores), abs=1e-4)
        assert found.floor == pytest.approx(wanted.floor, abs=1e-4)
        assert (not found.weights) == wanted.abstained == wanted.mix.is_base


def assert_follow_alike(policy: InlineSelector, known: KnownFeatures) -> None:
    """Check that the heads see the topic change where the policy does, after every other prompt."""
    texts, heads = list(known.by_text)[:24], policy.make_heads()
    decisions = [asyncio.run(policy.route(Prompt(text), known)) for text in texts]
    features = torch.stack([known.by_text[text] for text in texts])
    rows = [stack(head, policy.rules, len(texts)) for head in heads]
    choice = choose(rows, features)
    deciding = Heads(
        *(
            torch.stack([parts[int(n)][i] for i, n in enumerate(choice.head)])
            for parts in zip(*rows, strict=True)
        )
    )
    moves = []
    for before in decisions:
        is_choice = torch.zeros(len(texts), CAPACITY + 1, dtype=torch.bool)
        for row, number in enumerate(choice.head.tolist()):
            names = heads[number].names
            if before.choice is None:
                is_choice[row, -1] = True
            elif before.choice in names:
                is_choice[row, names.index(before.choice)] = True
        found = should_move(deciding, choice, is_choice).tolist()
        assert found == [policy.should_move(before, now) for now in decisions]
        moves += found
    assert len(set(moves)) == 2


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize(
    "options", [{"mode": "top1"}, {"mode": "top3"}, {"mode": "sparse", "minimum": 0.2}]
)
def test_retrieval(options: dict[str, Any], spread: float) -> None:
    known = KnownFeatures("abcde", spread=spread)
    rules = replace(known.context.rules, max_experts=2)
    for temperature in (None, 0.5):
        policy = create_policy(
            "retrieval",
            {**options, "temperature": temperature},
            replace(known.context, rules=rules),
        )
        found = asyncio.run(policy)
        assert isinstance(found, InlineSelector)
        assert_decide_alike(found, known)
        assert_follow_alike(found, known)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.9}, {"top": 1}, {"segments": 0.3}])
def test_gate(tmp_path: Path, options: dict[str, Any]) -> None:
    known = KnownFeatures(spread=2.0)
    context = train_gate(known, tmp_path, both="segments" in options)
    policy = asyncio.run(create_policy("gate", options, context))
    assert isinstance(policy, InlineSelector)
    assert_decide_alike(policy, known)
    assert_follow_alike(policy, known)


def test_experts_that_a_gate_does_not_know_are_left_to_retrieval(tmp_path: Path) -> None:
    known = KnownFeatures("abcd", spread=1.0)
    policy = asyncio.run(create_policy("gate", {}, train_gate(known, tmp_path)))
    assert isinstance(policy, InlineSelector)
    assert len(policy.make_heads()) == 2
    assert_decide_alike(policy, known)
    assert_follow_alike(policy, known)


def test_a_gate_with_a_hidden_layer_is_no_head(tmp_path: Path) -> None:
    from router.scoring.trained_gate import Gate
    from tta_serve.offline.train_gate import GateSamples, GateSettings, train

    known = KnownFeatures()
    train(
        known.context.digests,
        0,
        GateSamples(known.clusters, known.everyday),
        settings=GateSettings(hidden=4),
    ).save(tmp_path)
    assert Gate.load(tmp_path).about.hidden == 4
    policy = asyncio.run(create_policy("gate", {}, replace(known.context, artifacts=tmp_path)))
    assert isinstance(policy, InlineSelector)
    with pytest.raises(RouterError, match="--hidden 0"):
        policy.make_heads()


def make_fixed_head(bias: list[float], **settings: Any) -> tuple[Heads, MixRules]:
    """Make a head whose scores are fixed, the floor last."""
    names = tuple("abcdef"[: len(bias) - 1])
    rules = MixRules(frozenset(names), 1)
    head = Head(
        names,
        torch.zeros(2),
        torch.ones(2),
        torch.zeros(len(bias), 2),
        torch.tensor(bias),
        **settings,
    )
    return stack(head, rules, 1), rules


def test_experts_that_are_not_there_are_never_chosen() -> None:
    names, rules = ("a", "b"), MixRules(frozenset("ab"), 1)
    head = Head(
        names, torch.zeros(2), torch.ones(2), torch.zeros(3, 2), torch.tensor([5.0, 1.0, 0.0])
    )
    assert choose([stack(head, rules, 1, experts={"b"})], torch.zeros(1, 2)).units[0].tolist() == [
        0,
        20,
        0,
        0,
        0,
        0,
    ]
    assert not choose([stack(head, rules, 1, experts=())], torch.zeros(1, 2)).units.any()


def test_the_base_answers_below_the_floor() -> None:
    for bias, odds, answers in (
        ([1.0, 1.0, 1.5], False, False),
        ([1.0, 1.0, 1.5], True, True),
        ([1.0, 0.0, 1.0], False, True),
    ):
        heads, _ = make_fixed_head(bias, odds=odds)
        assert bool(choose([heads], torch.zeros(1, 2)).units.any()) == answers


def test_equal_scores_are_taken_in_the_order_of_names_and_shares_add_up() -> None:
    heads, rules = make_fixed_head([1.0, 1.0, 1.0, 0.0], top=3)
    units = choose([heads], torch.zeros(1, 2)).units[0].tolist()
    assert Mix.of(
        {n: rules.snap(u * rules.grid) for n, u in zip("abc", units, strict=False)}
    ) == Mix.of({"a": 0.3, "b": 0.35, "c": 0.35})
    assert choose([make_fixed_head([1.0, 1.0, 0.0], top=1)[0]], torch.zeros(1, 2)).units[
        0, :2
    ].tolist() == [
        20,
        0,
    ]


def test_nothing_leaves_all_to_the_next_head() -> None:
    none = make_empty_row(2, CAPACITY)
    choice = choose([none, make_fixed_head([2.0, 1.0, 0.0])[0]], torch.zeros(1, 2))
    assert (choice.head.tolist(), choice.units[0, 0].item()) == ([1], 20)


def test_it_is_one_graph_without_a_value_that_the_host_must_know() -> None:
    heads, _ = make_fixed_head([1.0, 2.0, 0.0], top=3)
    whole = torch.compile(choose, fullgraph=True, backend="eager")
    found, wanted = whole([heads], torch.randn(1, 2)), choose([heads], torch.zeros(1, 2))
    assert [torch.equal(a, b) for a, b in zip(found, wanted, strict=True)] == [True] * 4
