"""Entries chosen by what they were measured to be worth for the tasks that a selector sees."""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adapters.coefficient import Pair
from adapters.mix import Mix
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.recombined import (
    ENTRY_SETS,
    EntrySet,
    RecombinedEntry,
    RecombinedPolicy,
    rate_entry,
)
from router.policy import Context
from router.registry import create_policy
from tests.factories.known_features import KnownFeatures, make_between

MIXES = {
    "s-01": Mix.of({"a": Pair(1.0, 0.5)}),
    "s-02": Mix.of({"b": 1.0}),
    "s-03": Mix.of({"a": Pair(0.5, 1.0), "b": (0.25, 1.0)}),
}
SET = EntrySet(
    ("a", "b"),
    (
        RecombinedEntry("s-01", 1, {"a": 0.0, "b": -2.0}),
        RecombinedEntry("s-02", 1, {"a": -2.0, "b": 0.0}),
        RecombinedEntry("s-03", 2, {"a": -0.3, "b": -0.3}),
    ),
    {"a": "a" * 64, "b": "b" * 64},
    0.01,
)


def make_context(folder: Path, known: KnownFeatures, made: EntrySet = SET) -> Context:
    (folder / ENTRY_SETS).mkdir()
    file = folder / ENTRY_SETS / "s.json"
    file.write_text(json.dumps(asdict(made)), encoding="utf-8")
    return replace(known.context, artifacts=folder, entries=MIXES)


def make_policy(context: Context, **options: Any) -> RecombinedPolicy:
    policy = asyncio.run(create_policy("recombined", {"entries": "s", **options}, context))
    assert isinstance(policy, RecombinedPolicy)
    return policy


def route(policy: RecombinedPolicy, known: KnownFeatures, text: str) -> Decision:
    return asyncio.run(policy.route(Prompt(text), known))


def test_a_clear_prompt_gets_its_tasks_entry_and_one_of_two_tasks_that_of_both(
    tmp_path: Path,
) -> None:
    known = KnownFeatures("abc")
    known.by_text["both"] = make_between(known)
    context = make_context(tmp_path, known)
    shares = {"selector_options": {"mode": "sparse", "temperature": 2.0, "threshold": -2}}
    policy = make_policy(context)
    assert route(policy, known, "a3").mix == MIXES["s-01"]
    assert route(policy, known, "b3").mix == MIXES["s-02"]
    both = route(make_policy(context, **shares), known, "both")
    assert both.mix == MIXES["s-03"]
    assert both.scores.keys() == {"a", "b"}, "tasks of no entry are no classes"
    assert "entry s-03 for a 0." in both.reason
    everyday = route(policy, known, "e6")
    assert (everyday.mix, everyday.abstained) == (Mix(), True)
    assert route(policy, known, " ").abstained
    dear = make_policy(context, price=1.0, **shares)
    assert route(dear, known, "both").mix == MIXES["s-01"]


def test_an_entry_is_worth_its_tasks_less_its_experts() -> None:
    assert rate_entry(SET.entries[2], {"a": 0.5, "b": 0.5}, 0.1) == pytest.approx(-0.5)


def test_a_conversation_moves_to_another_entry_alone(tmp_path: Path) -> None:
    known = KnownFeatures("ab")
    policy = make_policy(make_context(tmp_path, known))
    first, other = route(policy, known, "a1"), route(policy, known, "b1")
    assert policy.should_move(first, other)
    assert not policy.should_move(first, replace(other, mix=first.mix))


def test_a_set_that_is_not_there_or_of_other_experts_is_refused(tmp_path: Path) -> None:
    known = KnownFeatures("ab")
    context = make_context(tmp_path, known)
    with pytest.raises(RouterError, match="no set of entries 'x', there are: s; make it: tta"):
        make_policy(context, entries="x")
    with pytest.raises(RouterError, match="entries that are gone: s-03"):
        make_policy(replace(context, entries={n: MIXES[n] for n in ("s-01", "s-02")}))
    with pytest.raises(RouterError, match="other weights of b"):
        make_policy(replace(context, digests={**context.digests, "b": "other"}))
    with pytest.raises(RouterError, match="needs a library that keeps sets"):
        make_policy(replace(context, artifacts=None))
    (tmp_path / ENTRY_SETS / "s.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RouterError, match="make the set again"):
        make_policy(context)
