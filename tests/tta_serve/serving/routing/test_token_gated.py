"""Gated policies in the server: how the engine is started, what requests carry, and what answers
say.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.bank.token_gating import Gating
from adapters.mix import Mix
from router.decision import Prompt
from router.errors import RouterError
from router.policies.static import StaticPolicy
from router.policies.token_gated import GatedPolicy
from tests.factories.counting_engine import CountingEngine
from tests.factories.experts import make_expert, make_plain_base
from tests.factories.placed_turns import Chat
from tests.tta_serve.serving.routing.test_dispatcher import CONFIG, DIGESTS
from tests.tta_serve.serving.routing.test_inline_turn import RULES, Known, said
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.engine import wire
from tta_serve.protocol import MergeInfo
from tta_serve.serving.experts.startup import StartupPlan
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.inline_turn import InstalledPolicy
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe
from tta_serve.serving.routing.route import RequestRoute

ARROW = Gating("arrow", 2, 0.5)
EVERY = Mix.of(dict.fromkeys(DIGESTS, 1.0))
NO_TURN = Turn()


def config(**policies: Mapping[str, Any]) -> ServeConfig:
    return ServeConfig.model_validate(
        {**CONFIG.model_dump(), "policies": policies, "default_policy": "base"}
    )


def router(*, inline: bool = False) -> PolicyDispatcher:
    """`gated` chooses by scores that are known, `every` takes all."""
    probe = ViewProbe(CountingEngine(), DIGESTS, ProbeCache())
    policy = GatedPolicy(ARROW, EVERY, Known(RULES, inline=True))
    installed = {"gated": asyncio.run(InstalledPolicy.into(probe, policy, RULES))} if inline else {}
    policies = {"gated": policy, "every": GatedPolicy(ARROW, EVERY, None)}
    served = config(**{name: {"type": "gated"} for name in policies})
    return PolicyDispatcher(
        served, {"base": StaticPolicy(Mix()), **policies}, {}, probe, Conversations(9, 9), installed
    )


def routed(router: PolicyDispatcher, policy: str, turn: Turn = NO_TURN) -> RequestRoute:
    return asyncio.run(router.route(Wish(policy, policy=policy), Prompt("which one?"), turn))


def test_answers_say_how_experts_share_and_the_engine_hears_it() -> None:
    found = routed(router(), "every")
    assert found.info is not None
    assert found.info.model_dump()["gating"] == {"score": "arrow", "top": 2, "temperature": 0.5}
    assert MergeInfo.model_validate(found.info.model_dump()) == found.info
    assert found.info.experts == {"sql": 1.0, "math": 1.0}
    assert found.info.mix not in ("base", EVERY.key(DIGESTS)[:16]), (
        "another hash than the same mix has ungated"
    )
    wanted = wire.read_order(Chat().place(found, "which one?"))
    assert (wanted.mix, wanted.gating, wanted.upper) == (
        dict.fromkeys(DIGESTS.values(), 1.0),
        ARROW,
        False,
    )


def test_what_is_gated_differently_shares_no_cache() -> None:
    gatings = (
        None,
        ARROW,
        replace(ARROW, score="spectr"),
        replace(ARROW, top=1),
        replace(ARROW, temperature=None),
    )
    requests = [wire.make_mix_request(EVERY, DIGESTS, gating) for gating in gatings]
    assert all(
        request == wire.make_mix_request(EVERY, DIGESTS, gating)
        for request, gating in zip(requests, gatings, strict=True)
    )
    assert len({request.lora_name for request in requests if request}) == len(gatings)
    assert [wire.read_order(request).gating for request in requests if request] == [*gatings]


def test_a_turn_may_be_undecided_and_gated_and_its_conversation_stays_so() -> None:
    served, chat = router(inline=True), Chat()
    first = routed(served, "gated", Turn(None, "1"))
    undecided = chat.place(first, "which one?")
    wanted = wire.read_order(undecided.adapter)
    assert (wanted.mix, wanted.policy, wanted.gating) == (None, "policy", ARROW)
    undecided.settle(said(0.9, 0.1))
    info = first.merge_info()
    assert (info.experts, info.gating, info.abstained, info.reason) == (
        {"math": 1.0},
        ARROW,
        False,
        "inside",
    )
    second = routed(served, "gated", Turn("1", "2"))
    undecided = chat.place(second, "which one?")
    wanted = wire.read_order(undecided.adapter)
    mine = {DIGESTS["math"]: 1.0}
    assert (wanted.before, wanted.gating) == (wire.TurnBefore(mine, DIGESTS["math"]), ARROW)
    assert [(part.mix, part.gating) for part in wanted.earlier] == [(mine, ARROW)]
    undecided.settle(said(0.1, 0.9))
    assert (second.merge_info().experts, second.merge_info().gating) == ({"sql": 1.0}, ARROW)


def test_where_the_pass_abstains_nothing_is_gated() -> None:
    found = routed(router(inline=True), "gated")
    Chat().place(found, "which one?").settle(said(0.1, 0.1))
    assert (
        found.merge_info().experts,
        found.merge_info().gating,
        found.merge_info().abstained,
    ) == ({}, None, True)


def test_explain_says_it_too() -> None:
    [by_probe, every, base] = asyncio.run(
        router().explain(Prompt("which one?"), ["gated", "every", "base"])
    )
    assert (by_probe.experts, by_probe.gating, by_probe.scores) == (
        {"sql": 1.0},
        ARROW,
        {"sql": 1.0},
    )
    assert (every.experts, every.gating, every.passes) == ({"sql": 1.0, "math": 1.0}, ARROW, 0)
    assert base.gating is None


def test_only_with_a_selector_that_can_it_decides_inside_a_pass() -> None:
    assert (
        config(gated={"type": "gated", "inline": True, "options": {"selector": "retrieval"}})
        .policies["gated"]
        .inline
    )
    for options in ({}, {"selector": "subspace"}):
        with pytest.raises(
            ValueError,
            match="cannot decide inside a pass; these can: retrieval, gate, and gated or twin with",
        ):
            config(gated={"type": "gated", "inline": True, "options": options})
    with pytest.raises(RouterError, match="cannot decide inside a pass"):
        asyncio.run(InstalledPolicy.into(router().probe, GatedPolicy(ARROW, EVERY, None), RULES))


def test_an_engine_keeps_canonical_factors_if_a_policy_gates_and_reads_gates_if_one_is_trained(
    tmp_path: Path,
) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    make_expert(tmp_path / "library" / "sql", base, seed=0, layers=range(2))
    settings = {
        "model.id": "m",
        "model.source": str(base),
        "library.path": str(tmp_path / "library"),
        "default_policy": "base",
    }
    for policy, wanted in (
        ({"type": "gated"}, (True, False)),
        ({"type": "gated", "options": {"score": "trained"}}, (True, True)),
        ({"type": "static"}, (False, False)),
    ):
        options = StartupPlan.of(load(None, {**settings, "policies.x": policy})).engine_args()[
            "additional_config"
        ]["tta_serve"]
        assert (options["gated"], options["trained"]) == wanted
