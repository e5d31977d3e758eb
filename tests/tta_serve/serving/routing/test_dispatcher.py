"""Routing: conversations that keep their mix, and what answers when a policy does not."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import pytest

from adapters.mix import Mix, MixRules
from router.decision import Decision, Prompt
from router.errors import RouterError
from router.policies.static import StaticPolicy
from router.policy import Context, Options, Policy
from router.probing import Probe
from tests.factories.counting_engine import CountingEngine
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import RequestError
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import Turn
from tta_serve.serving.routing.decision import Conversations
from tta_serve.serving.routing.dispatcher import PolicyDispatcher
from tta_serve.serving.routing.policy_breaker import FAILURES
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe
from tta_serve.serving.routing.route import DecidedTurn

DIGESTS = {"sql": "d1", "math": "d2"}
FLOOR = 0.5


class Table(Policy):
    """Scores as the prompt says, in JSON; a prompt that is none is refused.

    The mix is of all that reach the floor, 1 each.
    """

    Options = Options
    keep = 0.2

    def __init__(self) -> None:
        self.late = False

    @classmethod
    async def create(cls, options: Any, context: Context) -> Self:
        raise NotImplementedError

    async def route(self, prompt: Prompt, probe: Probe) -> Decision:
        if self.late:
            await asyncio.sleep(60)
        await probe.features(prompt.user_turn)
        try:
            scores: dict[str, float] = json.loads(prompt.user_turn)
        except ValueError:
            raise RouterError("no scores") from None
        mix = Mix.of({name: 1.0 for name, score in scores.items() if score >= FLOOR})
        return Decision(mix, scores, mix.is_base, "by the table", FLOOR)


CONFIG = ServeConfig.model_validate(
    {
        "model": {"id": "demo", "source": "x"},
        "library": {"path": "x"},
        "policies": {
            "table": {"type": "static", "deadline_s": 0.05, "fallback": "half"},
            "other": {"type": "static"},
            "half": {"type": "static"},
            "gone": {"type": "static", "fallback": "half"},
        },
        "default_policy": "table",
    }
)


class Talk:
    """A router, and turns that follow one another."""

    def __init__(self, digests: Mapping[str, str] = DIGESTS) -> None:
        self.table = Table()
        self.turns = 0
        self.engine, self.cache = CountingEngine(), ProbeCache()
        self.sessions = Conversations(100, 60)
        self.change(digests)

    def change(self, digests: Mapping[str, str]) -> None:
        policies = {
            "table": self.table,
            "other": Table(),
            "half": StaticPolicy(Mix.of({"sql": 0.5})),
        }
        probe = ViewProbe(self.engine, digests, self.cache)
        self.router = PolicyDispatcher(
            CONFIG, policies, {"gone": "no such expert"}, probe, self.sessions
        )

    async def say(self, policy: str = "table", **scores: float) -> Any:
        """The next turn. Returns what the answer says of it."""
        turn = Turn(str(self.turns) if self.turns else None, str(self.turns + 1))
        self.turns += 1
        routed = await self.router.route(
            Wish(policy, policy=policy), Prompt(json.dumps(scores)), turn
        )
        assert routed.info is not None
        assert isinstance(routed.turn, DecidedTurn)
        assert (routed.turn.adapter is None) == (not routed.info.experts)
        json.dumps(routed.info.model_dump(), allow_nan=False)
        return routed.info


def talking(run: Callable[[Talk], Awaitable[None]]) -> None:
    asyncio.run(run(Talk()))  # type: ignore[arg-type]


def test_a_follow_up_keeps_the_mix_until_another_expert_is_clearly_ahead() -> None:
    async def run(talk: Talk) -> None:
        first = await talk.say(sql=0.9, math=0.6)
        assert (first.experts, first.kept, first.reason) == (
            {"sql": 1.0, "math": 1.0},
            False,
            "by the table",
        )
        unsure = await talk.say(sql=0.6, math=0.7)
        assert (unsure.experts, unsure.kept, unsure.mix) == (first.experts, True, first.mix)
        assert unsure.scores == {"math": 0.7, "sql": 0.6}, "of this turn"
        assert "earlier turn" in unsure.reason
        still = await talk.say(sql=0.6, math=0.7)
        assert still.kept, "what is kept stays what the next turn is measured by"
        moved = await talk.say(sql=0.1, math=0.7)
        assert (moved.experts, moved.kept) == ({"math": 1.0}, False)
        assert (await talk.say(sql=0.6, math=0.6)).experts == {"math": 1.0}

    talking(run)


def test_the_base_is_kept_and_left_like_an_expert() -> None:
    async def run(talk: Talk) -> None:
        assert (await talk.say(sql=0.1)).abstained
        unsure = await talk.say(sql=0.6)
        assert (unsure.experts, unsure.abstained, unsure.kept) == ({}, True, True)
        assert (await talk.say(sql=0.9)).experts == {"sql": 1.0}
        assert (await talk.say(sql=0.4)).experts == {"sql": 1.0}
        assert (await talk.say(sql=0.2)).abstained

    talking(run)


def test_a_mix_is_kept_only_of_experts_that_are_what_they_were() -> None:
    async def run(talk: Talk) -> None:
        await talk.say(sql=0.9)
        talk.change({**DIGESTS, "math": "other"})
        assert (await talk.say(sql=0.6, math=0.7)).experts == {"sql": 1.0}
        talk.change({**DIGESTS, "sql": "other"})
        anew = await talk.say(sql=0.6, math=0.7)
        assert (anew.experts, anew.kept) == ({"sql": 1.0, "math": 1.0}, False)
        talk.change({"math": "d2"})
        assert (await talk.say(math=0.7)).experts == {"math": 1.0}

    talking(run)


def test_a_policy_that_is_late_keeps_a_conversations_mix_and_else_has_its_fallback() -> None:
    async def run(talk: Talk) -> None:
        talk.table.late = True
        first = await talk.say(sql=0.9)
        assert (first.experts, first.fallback, first.kept) == ({"sql": 0.5}, "half", False)
        assert first.reason == "fixed mix; by half, since the policy was late"
        talk.table.late = False
        second = await talk.say(sql=0.1)
        assert (second.experts, second.kept) == ({}, False), "a fallback's mix is nothing to keep"
        await talk.say(math=0.9)
        talk.table.late = True
        third = await talk.say(sql=0.9)
        assert (third.experts, third.fallback, third.kept) == ({"math": 1.0}, None, True)
        assert "late" in third.reason
        assert (await talk.say(sql=0.9)).experts == {"math": 1.0}

    talking(run)


def test_a_policy_that_is_late_again_and_again_is_not_waited_for() -> None:
    async def run(talk: Talk) -> None:
        talk.table.late = True
        for _ in range(FAILURES):
            talk.turns = 0
            assert "the policy was late" in (await talk.say(sql=0.9)).reason
        talk.table.late = False
        talk.turns = 0
        paused = await talk.say(sql=0.9)
        assert (paused.experts, paused.fallback) == ({"sql": 0.5}, "half")
        assert paused.reason.endswith("since it failed 5 times in a row, and is left alone")
        assert (await talk.say("other", sql=0.9)).experts == {"sql": 1.0}, "others go on"

    talking(run)


def test_an_unusable_policy_has_its_fallback_and_says_why() -> None:
    async def run(talk: Talk) -> None:
        info = await talk.say("gone", sql=0.9)
        assert (info.policy, info.fallback, info.experts) == ("gone", "half", {"sql": 0.5})
        assert "no such expert" in info.reason

    talking(run)


def test_each_policy_has_its_own_memory_and_a_fixed_mix_none() -> None:
    async def run(talk: Talk) -> None:
        await talk.say(sql=0.9)
        assert (await talk.say("other", math=0.6)).experts == {"math": 1.0}
        routed = await talk.router.route(Wish("pinned", mix=Mix()), Prompt("x"), Turn("1", "2"))
        assert routed.info is not None
        assert (routed.info.experts, routed.info.kept) == ({}, False)

    talking(run)


def test_what_a_policy_cannot_do_for_a_request_is_the_requests_mistake() -> None:
    async def run(talk: Talk) -> None:
        with pytest.raises(RequestError, match="policy 'table': no scores") as error:
            await talk.router.route(Wish("table", policy="table"), Prompt("rubbish"), Turn())
        assert error.value.status == 400

    talking(run)


def test_requests_of_one_session_at_the_same_time_each_get_a_mix_and_one_is_kept() -> None:
    async def run(talk: Talk) -> None:
        turn = Turn("session", "session")

        async def one(i: int) -> str:
            prompt = Prompt(
                json.dumps(
                    {"sql": 0.9, "math": i / 1000} if i % 2 else {"math": 0.9, "sql": i / 1000}
                )
            )
            return (
                (await talk.router.route(Wish("table", policy="table"), prompt, turn))
                .merge_info()
                .mix
            )

        mixes = await asyncio.gather(*(one(i) for i in range(20)))
        assert set(mixes) == {Mix.of({name: 1.0}).key(DIGESTS)[:16] for name in ("sql", "math")}
        assert len(talk.sessions) == 1
        unsure = await talk.router.route(
            Wish("table", policy="table"), Prompt(json.dumps({"sql": 0.6, "math": 0.6})), turn
        )
        assert unsure.merge_info().mix in set(mixes)

    talking(run)


def test_an_answer_names_the_best_scores_and_none_that_json_cannot_say() -> None:
    async def run(talk: Talk) -> None:
        scores = {f"e{i}": i / 30 for i in range(10)}
        info = await talk.say("table", **scores, worst=float("-inf"))
        assert [*info.scores] == [f"e{i}" for i in range(9, 1, -1)]
        assert info.scores["e2"] == 0.0667

    talking(run)


def test_explain_asks_every_policy_counts_its_passes_and_remembers_nothing() -> None:
    async def run(talk: Talk) -> None:
        prompt = Prompt(json.dumps({"sql": 0.9, "math": 0.12346}))
        table, other, half, again, gone = await talk.router.explain(
            prompt, ["table", "other", "half", "table", "gone"]
        )
        assert (table.experts, table.scores, table.floor) == (
            {"sql": 1.0},
            {"sql": 0.9, "math": 0.1235},
            FLOOR,
        )
        assert (table.passes, other.passes, again.passes) == (1, 0, 0), "the same features"
        assert (half.experts, half.floor) == ({"sql": 0.5}, None)
        assert gone.fallback == "half"
        assert len(talk.sessions) == 0
        with pytest.raises(RequestError, match="there are: base, table, other, half, gone"):
            await talk.router.explain(prompt, ["nope"])

    talking(run)


def test_policies_that_refuse_the_experts_are_unusable_unless_they_must_work() -> None:
    policies = {
        name: {"type": "static", "options": {"expert": expert}}
        for name, expert in (("one", "sql"), ("two", "c"))
    }
    config = ServeConfig.model_validate(
        {**CONFIG.model_dump(), "policies": policies, "default_policy": "one"}
    )
    probe = ViewProbe(CountingEngine(), DIGESTS, ProbeCache())
    context = Context(MixRules(frozenset(DIGESTS), layers=2), {}, [], probe, DIGESTS)

    def made(*must: str) -> PolicyDispatcher:
        return asyncio.run(
            PolicyDispatcher.create(config, context, probe, Conversations(1, 1), must)
        )

    router = made("one", "base")
    assert set(router.policies) == {"one", "base"}
    assert "unknown expert 'c'" in router.unusable["two"]
    with pytest.raises(RouterError, match="policy 'two': unknown expert 'c'"):
        made("one", "two")


def test_policies_are_listed_with_all_their_options() -> None:
    listed = Talk().router.describe()
    assert listed["default"] == "table"
    by_name = {policy["name"]: policy for policy in listed["policies"]}
    assert [*by_name] == ["base", "table", "other", "half", "gone"]
    assert (by_name["table"]["type"], by_name["table"]["fallback"]) == ("static", "half")
    assert by_name["table"]["options"]["uniform"] is False
    assert listed["unusable"] == {"gone": "no such expert"}
    json.dumps(listed, allow_nan=False)
