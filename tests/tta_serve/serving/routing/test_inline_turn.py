"""Conversations whose turns are decided inside the pass: what the pass is asked, and what its words
come to.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import pytest
import torch

from adapters.mix import Mix, MixRules
from router.decision import Prompt
from router.errors import RouterError
from router.policies.selector import InlineSelector, Selection
from router.policies.static import StaticPolicy
from router.policies.twin import TwinOptions, TwinPolicy
from router.policy import Context, Options
from router.probing import Probe
from router.scoring.heads import Head
from tests.factories.counting_engine import CountingEngine
from tests.factories.placed_turns import SYSTEM, Chat
from tests.tta_serve.serving.routing.test_dispatcher import CONFIG, DIGESTS
from tta_serve.config.sections import ServeConfig
from tta_serve.engine import wire
from tta_serve.engine.client.engine_client import UndecidedRequest
from tta_serve.engine.client.placement import UserTurns
from tta_serve.engine.wire import EarlierMix
from tta_serve.protocol import MergeInfo
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.inline_turn import InstalledPolicy
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe
from tta_serve.serving.routing.route import DecidedTurn, RequestRoute

RULES = MixRules(frozenset(DIGESTS), layers=2)
NAMES = ("math", "sql")


class Known(InlineSelector):
    """Scores mean themselves; an expert must reach the floor. By a probe it always finds sql."""

    Options = Options
    keep = 0.2
    makes_segments = False

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        raise NotImplementedError

    async def select(self, prompt: Prompt, probe: Probe) -> Selection:
        return Selection({"sql": 1.0}, {"sql": 1.0}, 0.5, "by a probe")

    def make_heads(self) -> tuple[Head, ...]:
        return (Head(NAMES, torch.zeros(2), torch.ones(2), torch.zeros(3, 2), torch.zeros(3)),)

    def judge(
        self, head: int, scores: Mapping[str, float], floor: float, several: float = -math.inf
    ) -> Selection:
        best = max(scores, key=lambda name: scores[name])
        others = tuple(name for name in scores if name != best and scores[name] >= floor)
        chosen = {best: 1.0} if scores[best] >= floor else {}
        return Selection(chosen, scores, floor, "inside", others if self.makes_segments else ())


def said(
    math: float, sql: float, floor: float = 0.5, since: int = 0, *, kept: bool = False
) -> wire.InlineDecision:
    best = max(math, sql)
    units = [20 * (best >= floor and score == best) for score in (math, sql)]
    return wire.InlineDecision(0, [math, sql], floor, units, since, kept)


class Talk:
    """A router with one policy that the engine decides by, and a conversation."""

    def __init__(self) -> None:
        self.engine, self.sessions, self.turns = CountingEngine(), Conversations(100, 60), 0
        self.policy, self.chat = Known(RULES, inline=True), Chat()
        self.change(DIGESTS)

    def change(self, digests: Mapping[str, str]) -> None:
        probe = ViewProbe(self.engine, digests, ProbeCache())
        installed = asyncio.run(InstalledPolicy.into(probe, self.policy, RULES))
        self.router = PolicyDispatcher(
            CONFIG, {"table": self.policy}, {}, probe, self.sessions, {"table": installed}
        )

    def begin(self, text: str = "which one?", **wish: Any) -> tuple[RequestRoute, UndecidedRequest]:
        """The next turn, on its way."""
        turn = Turn(str(self.turns) if self.turns else None, str(self.turns + 1))
        self.turns += 1
        wanted = Wish("table", policy="table", **{"acts_from": "user_turn"} | wish)
        routed = asyncio.run(self.router.route(wanted, Prompt(text), turn))
        assert routed.info is None
        assert routed.merge_info().mix == "undecided"
        placed = self.chat.place(routed, text)
        assert isinstance(placed, UndecidedRequest)
        return routed, placed

    def say(self, what: wire.InlineDecision | None, **wish: Any) -> MergeInfo:
        """A whole turn. Returns what the answer says."""
        routed, undecided = self.begin(**wish)
        undecided.settle(what)
        undecided.settle(said(0.0, 9.0))  # another sample of the same request changes nothing
        return routed.merge_info()

    def order(self, **wish: Any) -> wire.WorkerOrder:
        """What the engine is asked for the next turn."""
        return wire.read_order(self.begin(**wish)[1].adapter)


def test_a_first_turn_is_left_to_the_pass_and_acts_from_where_the_user_speaks() -> None:
    talk = Talk()
    routed, undecided = talk.begin()
    wanted = wire.read_order(undecided.adapter)
    assert (wanted.mix, wanted.policy, wanted.upper, wanted.before) == (None, "policy", True, None)
    place = (len(SYSTEM), len(SYSTEM) + len("which one?"))
    assert (wanted.acts_from, wanted.turn, wanted.earlier) == (place[0], place, ())
    undecided.settle(said(0.9, 0.1))
    info = routed.merge_info()
    assert (info.experts, info.abstained, info.kept) == ({"math": 1.0}, False, False)
    assert (info.reason, info.acts_from) == ("inside", "user_turn")
    assert info.scores == {"math": 0.9, "sql": 0.1}
    assert ("features", "which one?") not in talk.engine.asked


def test_a_mix_may_act_from_the_start_or_be_decided_before_it_acts_from_the_answer() -> None:
    assert Talk().order(acts_from="start").acts_from == 0
    assert Talk().order(acts_from="last_user_turn").acts_from == len(SYSTEM)
    talk = Talk()
    wish = Wish("table", policy="table", acts_from="answer")
    routed = asyncio.run(talk.router.route(wish, Prompt("which one?"), Turn()))
    placed = talk.chat.place(routed, "which one?")
    assert wire.read_order(placed).acts_from == len(talk.chat.tokens) - 1
    assert routed.merge_info().acts_from == "answer"


def test_a_completion_is_a_turn_as_a_whole() -> None:
    talk = Talk()
    wish = Wish("table", policy="table")
    routed = asyncio.run(talk.router.route(wish, Prompt("once", chat=False), Turn()))
    placed: Any = routed.turn.place(talk.chat.placer, [1, 2, 3], UserTurns())
    wanted = wire.read_order(placed.adapter)
    assert (wanted.acts_from, wanted.turn) == (0, (0, 3))


def test_a_follow_up_keeps_what_stands_before_it_and_says_what_holds() -> None:
    talk = Talk()
    first = talk.begin()[1]
    first.settle(said(0.9, 0.1, since=12))
    follow, then = talk.begin("and then?")
    wanted = wire.read_order(then.adapter)
    mine = {DIGESTS["math"]: 1.0}
    ran = EarlierMix(len(SYSTEM), first.adapter.lora_name, mine, 12, upper=True)
    assert wanted.earlier == (ran,)
    assert (wanted.acts_from, wanted.mix) == (talk.chat.last, None)
    assert wanted.before == wire.TurnBefore(mine, DIGESTS["math"])
    assert then.adapter.lora_name != first.adapter.lora_name

    then.settle(said(0.6, 0.7, kept=True))
    info = follow.merge_info()
    assert (info.experts, info.kept, info.acts_from) == ({"math": 1.0}, True, "last_user_turn")
    assert info.scores == {"sql": 0.7, "math": 0.6}
    assert "earlier turn" in info.reason
    last = talk.order()
    assert last.earlier == (
        ran,
        EarlierMix(wanted.acts_from, then.adapter.lora_name, mine, 0, True),
    )
    assert last.before == wanted.before


def test_another_topic_acts_from_its_turn() -> None:
    talk = Talk()
    talk.say(said(0.9, 0.1))
    moved = talk.say(said(0.1, 0.8))
    assert (moved.experts, moved.kept) == ({"sql": 1.0}, False)
    wanted = talk.order()
    assert [part.mix for part in wanted.earlier] == [
        {DIGESTS["math"]: 1.0},
        {DIGESTS["sql"]: 1.0},
    ]
    assert wanted.before == wire.TurnBefore({DIGESTS["sql"]: 1.0}, DIGESTS["sql"])


def test_what_the_pass_decides_may_be_several_segments_and_the_first_is_kept() -> None:
    talk = Talk()
    assert not talk.begin()[0].turn.may_go_on
    talk.policy.makes_segments = True
    routed, undecided = talk.begin()
    assert routed.turn.may_go_on
    undecided.settle(said(0.9, 0.6))
    assert routed.turn.then == (Mix.of({"sql": 1.0}),)

    routed, undecided = talk.begin()
    before = wire.read_order(undecided.adapter).before
    assert before == wire.TurnBefore({DIGESTS["math"]: 1.0}, DIGESTS["math"])
    undecided.settle(said(0.6, 0.7, kept=True))
    assert routed.merge_info().experts == {"math": 1.0}, "it is kept"
    assert routed.turn.then == (Mix.of({"sql": 1.0}),), "and what else is wanted comes after it"
    routed, undecided = talk.begin()
    undecided.settle(said(0.3, 0.7, kept=True))
    assert routed.turn.then == ()


def test_the_base_is_a_conversations_mix_too() -> None:
    talk = Talk()
    info = talk.say(said(0.1, 0.1))
    assert (info.experts, info.abstained) == ({}, True)
    assert talk.order().before == wire.TurnBefore({}, None)
    talk.turns -= 1
    talk.chat.said.pop()
    info = talk.say(said(0.1, 0.6, kept=True))
    assert (info.experts, info.abstained, info.kept) == ({}, True, True)
    assert talk.say(said(0.1, 0.9)).experts == {"sql": 1.0}


def test_a_conversation_that_does_not_go_on_from_its_last_prompt_starts_anew() -> None:
    talk = Talk()
    talk.say(said(0.9, 0.1))
    talk.chat.said[0] = "which two?"
    wanted = talk.order()
    assert (wanted.earlier, wanted.acts_from) == ((), len(SYSTEM))
    assert wanted.before == wire.TurnBefore({DIGESTS["math"]: 1.0}, DIGESTS["math"])


def test_one_of_very_many_turns_starts_anew() -> None:
    talk = Talk()
    lengths = []
    for _ in range(70):
        _, undecided = talk.begin()
        undecided.settle(said(0.9, 0.1, kept=True))
        lengths.append(len(wire.read_order(undecided.adapter).earlier))
    assert max(lengths) == 64
    assert lengths.count(0) == 2


def test_a_turn_that_could_not_be_read_says_so() -> None:
    talk = Talk()
    info = talk.say(None)
    assert (info.fallback, info.experts) == ("base", {})
    assert "not all of the turn" in info.reason
    assert talk.order().before is None, "nothing was decided that could be kept"
    talk.turns -= 1
    talk.chat.said.pop()
    talk.say(said(0.9, 0.1))
    info = talk.say(None)
    assert (info.experts, info.kept) == ({"math": 1.0}, True)
    assert "not all of this one" in info.reason


def test_a_conversation_whose_expert_has_changed_starts_undecided() -> None:
    talk = Talk()
    talk.say(said(0.9, 0.1))
    talk.change({**DIGESTS, "math": "other"})
    wanted = talk.order()
    assert (wanted.before, wanted.earlier) == (None, ())


@pytest.mark.parametrize("prompt", [Prompt("two", chat=False, in_prompt=False), Prompt("  ")])
def test_what_has_no_one_turn_is_decided_before(prompt: Prompt) -> None:
    routed = asyncio.run(Talk().router.route(Wish("table", policy="table"), prompt, Turn()))
    assert isinstance(routed.turn, DecidedTurn)
    assert routed.info is not None


@pytest.mark.parametrize("abstain", ["shared", "base"])
def test_the_shared_part_of_twin_merging_is_on_beside_what_the_pass_decides(abstain: Any) -> None:
    rules = replace(
        RULES,
        names=RULES.names | {"t-shared"},
        shared=dict.fromkeys(NAMES, "t-shared"),
        aside=frozenset({"t-shared"}),
    )
    options = TwinOptions(prefix="t", abstain=abstain)
    policy = TwinPolicy(options, "t-shared", Known(rules, inline=True))
    probe = ViewProbe(CountingEngine(), {**DIGESTS, "t-shared": "s"}, ProbeCache())
    installed = asyncio.run(InstalledPolicy.into(probe, policy, rules))
    (head,) = installed.heads
    assert (head.beside, head.alone) == ("t-shared", abstain == "shared")
    assert installed.decision(said(0.1, 0.9)).mix == Mix.of({"t-shared": 1.0, "sql": 1.0})
    nobody = installed.decision(said(0.1, 0.2))
    assert nobody.abstained
    assert nobody.mix == (Mix.of({"t-shared": 1.0}) if abstain == "shared" else Mix())


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
