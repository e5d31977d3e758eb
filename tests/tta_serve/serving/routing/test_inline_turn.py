"""Conversations whose turns are decided inside the pass: what the pass is asked, and what its words
come to.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

import pytest
import torch

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policies.selector import InlineSelector, Selection
from router.policies.static import StaticPolicy
from router.policy import Context, Options
from router.probing import Probe
from router.scoring.heads import Head
from tests.factories.counting_engine import CountingEngine
from tests.tta_serve.serving.routing.test_dispatcher import CONFIG, DIGESTS
from tta_serve.config import ServeConfig
from tta_serve.engine import wire
from tta_serve.engine.client.engine_client import UndecidedRequest
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.conversations import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.inline_turn import InstalledPolicy
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe
from tta_serve.serving.routing.route import RequestRoute

RULES = MixRules(frozenset(DIGESTS), layers=2)
NAMES = ("math", "sql")
FIRST = Prompt("which one?")


class Known(InlineSelector):
    """Scores mean themselves; an expert must reach the floor. By a probe it always finds sql."""

    Options = Options
    keep = 0.2

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        raise NotImplementedError

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        return Selection({"sql": 1.0}, {"sql": 1.0}, 0.5, "by a probe")

    def make_heads(self) -> tuple[Head, ...]:
        return (Head(NAMES, torch.zeros(2), torch.ones(2), torch.zeros(3, 2), torch.zeros(3)),)

    def judge(self, head: int, scores: Mapping[str, float], floor: float) -> Selection:
        best = max(scores, key=lambda name: scores[name])
        return Selection({best: 1.0} if scores[best] >= floor else {}, scores, floor, "inside")


def said(math: float, sql: float, floor: float = 0.5, since: int = 0) -> wire.InlineDecision:
    best = max(math, sql)
    units = [20 * (best >= floor and score == best) for score in (math, sql)]
    return wire.InlineDecision(0, [math, sql], floor, units, since)


class Talk:
    """A router with one policy that the engine decides by."""

    def __init__(self) -> None:
        self.engine, self.sessions, self.turns = CountingEngine(), Conversations(100, 60), 0
        self.policy = Known(RULES, inline=True)
        self.change(DIGESTS)

    def change(self, digests: Mapping[str, str]) -> None:
        probe = ViewProbe(self.engine, digests, ProbeCache())
        installed = asyncio.run(InstalledPolicy.into(probe, self.policy, RULES))
        self.router = PolicyDispatcher(
            CONFIG, {"table": self.policy}, {}, probe, self.sessions, {"table": installed}
        )

    def begin(self, prompt: Prompt = FIRST) -> tuple[RequestRoute, UndecidedRequest]:
        """The next turn, on its way."""
        turn = Turn(str(self.turns) if self.turns else None, str(self.turns + 1))
        self.turns += 1
        routed = asyncio.run(self.router.route(Wish("table", policy="table"), prompt, turn))
        assert isinstance(routed.adapter, UndecidedRequest)
        assert routed.info is None
        assert routed.merge_info().mix == "undecided"
        return routed, routed.adapter

    def say(self, what: wire.InlineDecision | None) -> tuple[RequestRoute, Any]:
        """A whole turn. Returns also what starts anew."""
        routed, undecided = self.begin()
        other = undecided.settle(what)
        assert undecided.settle(said(0.0, 9.0)) is None, (
            "another sample of the same request changes nothing"
        )
        return routed, other


def test_a_first_turn_is_left_to_the_pass() -> None:
    talk = Talk()
    routed, undecided = talk.begin()
    wanted = wire.read_order(undecided.adapter)
    assert (wanted.mix, wanted.policy, wanted.upper, undecided.follows) == (
        None,
        "policy",
        True,
        False,
    )
    assert undecided.text == "which one?"
    assert undecided.settle(said(0.9, 0.1)) is None
    info = routed.merge_info()
    assert (info.experts, info.abstained, info.kept, info.reason) == (
        {"math": 1.0},
        False,
        False,
        "inside",
    )
    assert info.scores == {"math": 0.9, "sql": 0.1}
    assert ("features", "which one?") not in talk.engine.asked


def test_a_completion_is_a_turn_as_a_whole() -> None:
    assert Talk().begin(Prompt("once", chat=False))[1].text is None


def test_a_follow_up_has_the_mix_and_the_cache_of_its_conversation() -> None:
    talk = Talk()
    _, undecided = talk.begin()
    undecided.settle(said(0.9, 0.1, since=64))
    follow, then = talk.begin()
    wanted = wire.read_order(then.adapter)
    assert then.adapter.lora_name == undecided.adapter.lora_name
    assert then.adapter.lora_int_id == undecided.adapter.lora_int_id
    assert (wanted.mix, wanted.policy, wanted.since, wanted.upper) == (
        {DIGESTS["math"]: 1.0},
        "policy",
        64,
        True,
    )
    assert then.follows
    assert then.settle(said(0.6, 0.7)) is None, "0.1 ahead is too little"
    info = follow.merge_info()
    assert (info.experts, info.kept, info.scores) == (
        {"math": 1.0},
        True,
        {"sql": 0.7, "math": 0.6},
    )
    assert "earlier turn" in info.reason
    assert talk.begin()[1].adapter.lora_name == undecided.adapter.lora_name


def test_another_topic_starts_anew_as_a_conversation_of_its_own() -> None:
    talk = Talk()
    talk.say(said(0.9, 0.1))
    moved, other = talk.say(said(0.1, 0.8))
    info = moved.merge_info()
    wanted = wire.read_order(other)
    assert (info.experts, info.kept) == ({"sql": 1.0}, False)
    assert (wanted.mix, wanted.since, wanted.upper) == ({DIGESTS["sql"]: 1.0}, 0, True)
    later = talk.begin()[1].adapter
    assert later.lora_name == other.lora_name
    assert wire.read_order(later).mix == wanted.mix


def test_the_base_is_a_conversations_mix_too() -> None:
    talk = Talk()
    routed, _ = talk.say(said(0.1, 0.1))
    assert (routed.merge_info().experts, routed.merge_info().abstained) == ({}, True)
    assert talk.begin()[1].settle(said(0.1, 0.6)) is None
    routed, other = talk.say(said(0.1, 0.9))
    assert (routed.merge_info().experts, wire.read_order(other).mix) == (
        {"sql": 1.0},
        {DIGESTS["sql"]: 1.0},
    )


def test_a_turn_that_could_not_be_read_says_so() -> None:
    talk = Talk()
    routed, _ = talk.say(None)
    assert (routed.merge_info().fallback, routed.merge_info().experts) == ("base", {})
    assert "not all of the turn" in routed.merge_info().reason
    assert not talk.begin()[1].follows, "nothing was decided that could be kept"
    talk.turns -= 1
    talk.say(said(0.9, 0.1))
    routed, other = talk.say(None)
    assert (routed.merge_info().experts, routed.merge_info().kept, other) == (
        {"math": 1.0},
        True,
        None,
    )
    assert "cache" in routed.merge_info().reason


def test_a_conversation_whose_expert_has_changed_starts_undecided() -> None:
    talk = Talk()
    talk.say(said(0.9, 0.1))
    talk.change({**DIGESTS, "math": "other"})
    assert wire.read_order(talk.begin()[1].adapter).mix is None


@pytest.mark.parametrize("prompt", [Prompt("two", chat=False, in_prompt=False), Prompt("  ")])
def test_what_has_no_one_turn_is_decided_before(prompt: Prompt) -> None:
    routed = asyncio.run(Talk().router.route(Wish("table", policy="table"), prompt, Turn()))
    assert not isinstance(routed.adapter, UndecidedRequest)
    assert routed.info is not None


def test_only_some_policies_can_decide_inside_a_pass() -> None:
    probe = ViewProbe(CountingEngine(), DIGESTS, ProbeCache())
    with pytest.raises(RouterError, match="retrieval and gate can"):
        asyncio.run(InstalledPolicy.into(probe, StaticPolicy(Mix()), RULES))
    with pytest.raises(RouterError, match=r"mix.minimum and mix.maximum are -2.0, 0.5"):
        asyncio.run(
            InstalledPolicy.into(
                probe, Known(RULES, inline=True), MixRules(frozenset(DIGESTS), 2, maximum=0.5)
            )
        )
    with pytest.raises(
        ValueError, match="type 'static' cannot decide inside a pass; these can: retrieval, gate"
    ):
        ServeConfig.model_validate(
            {**CONFIG.model_dump(), "policies": {"table": {"type": "static", "inline": True}}}
        )
