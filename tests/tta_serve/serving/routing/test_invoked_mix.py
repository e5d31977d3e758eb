"""Where experts begin to act whose training began at an invocation, and what PEFT says of it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora.variants import calculate_alora_offsets

from adapters.bank.token_gating import Gating
from adapters.mix import Mix
from router.decision import ActsFrom
from tests.factories.placed_turns import SYSTEM, Letters
from tta_serve.engine import wire
from tta_serve.engine.client.placement import PromptHistory, PromptPlacer, UserTurns
from tta_serve.protocol import MergeInfo
from tta_serve.serving.routing.invoked_mix import InvokedMix
from tta_serve.serving.routing.route import DecidedTurn

DIGESTS = {"judge": "d1", "sql": "d2", "title": "d3"}
INVOCATIONS = {"judge": [ord(c) for c in "[judge]"], "title": [ord(c) for c in "[title]"]}
ALL = Mix.of({"judge": 1.0, "sql": 0.5, "title": 0.25})


def encode(text: str) -> list[int]:
    return Letters().encode(text, add_special_tokens=False)


def make(mix: Mix, gating: Gating | None = None) -> Any:
    return wire.make_mix_request(mix, DIGESTS, gating)


def run(
    text: str, mix: Mix = ALL, acts_from: ActsFrom = "user_turn", gating: Gating | None = None
) -> tuple[Any, MergeInfo]:
    """Return what the engine runs a prompt as, and what the answer says."""
    info = MergeInfo(policy="x", experts={}, mix="", gating=gating)
    own = {n: INVOCATIONS[n] for n in mix.as_dict() if n in INVOCATIONS}
    invoked = InvokedMix(mix, own, lambda cut: make(cut, gating))
    history = PromptHistory.of(encode(SYSTEM), ())
    turn = DecidedTurn(make(mix, gating), info, acts_from, history, True, invoked=invoked)
    placer = PromptPlacer(Letters(), 512)
    return turn.place(placer, encode(SYSTEM + text), UserTurns("which?", "which?")), info


def parts(adapter: Any) -> list[tuple[int, dict[str, Any]]]:
    order = wire.read_order(adapter)
    return [(p.start, dict(p.mix)) for p in order.earlier] + [
        (order.acts_from, dict(order.mix or {}))
    ]


def test_each_expert_acts_from_its_own_invocation_on() -> None:
    text = "which? [title] and [judge]: "
    begins = len(SYSTEM)
    title, judge = begins + text.index("[title]"), begins + text.index("[judge]")
    adapter, info = run(text)
    assert parts(adapter) == [
        (begins, {"d2": 0.5}),
        (title, {"d2": 0.5, "d3": 0.25}),
        (judge, {"d1": 1.0, "d2": 0.5, "d3": 0.25}),
    ]
    assert info.invoked_from == {"judge": judge, "title": title}
    assert info.acts_from == "user_turn"
    assert adapter.lora_name == make(ALL).lora_name, "what it ends as is shared with the whole mix"
    names = [part.name for part in wire.read_order(adapter).earlier]
    assert names[0] == make(Mix.of({"sql": 0.5})).lora_name


def test_an_expert_that_is_not_invoked_does_not_act() -> None:
    adapter, info = run("which? [title]", Mix.of({"judge": 1.0, "sql": 0.5}))
    assert parts(adapter) == [(len(SYSTEM), {"d2": 0.5})]
    assert info.invoked_from == {"judge": None}
    assert run("which?", Mix.of({"judge": 1.0}))[0] is None, "the base answers"


def test_the_last_invocation_counts_but_not_one_from_before_the_mix_acts() -> None:
    adapter, _ = run("[judge] which? [judge]", Mix.of({"judge": 1.0}), "start")
    assert parts(adapter) == [
        (0, {}),
        (len(SYSTEM) + len("[judge] which? "), {"d1": 1.0}),
    ]
    adapter, info = run("[judge] which? ", Mix.of({"judge": 1.0}), "last_user_turn")
    assert parts(adapter) == [(len(SYSTEM) + len("[judge] "), {"d1": 1.0})]
    assert info.invoked_from == {"judge": len(SYSTEM)}


def test_experts_that_share_each_token_do_so_from_their_invocations_on() -> None:
    gating = Gating("arrow", 2)
    adapter, _ = run("which? [judge]", Mix.of({"judge": 1.0, "sql": 1.0}), gating=gating)
    order = wire.read_order(adapter)
    assert [p.gating for p in order.earlier] == [gating]
    assert order.gating == gating
    adapter, _ = run("which? [judge]", Mix.of({"judge": 1.0}), "start", gating)
    assert [p.gating for p in wire.read_order(adapter).earlier] == [None], "the base shares nothing"


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_the_place_is_that_of_peft(prompt: Sequence[int], invocation: Sequence[int]) -> None:
    config: Any = {"a": SimpleNamespace(alora_invocation_tokens=list(invocation))}
    [offset] = calculate_alora_offsets(config, "a", torch.tensor([prompt]))
    mix = InvokedMix(Mix.of({"a": 1.0}), {"a": invocation}, lambda _: None)
    found = mix.find_starts(prompt)["a"]
    assert found == (None if offset is None else len(prompt) - offset)


@pytest.mark.parametrize("start", [0, 3, 9])
def test_parts_end_where_the_next_ones_start(start: int) -> None:
    mix = InvokedMix(ALL, INVOCATIONS, make)
    found = mix.split({"judge": 3, "title": 3}, start)
    assert [part.start for part in found] == sorted({start, max(start, 3)})
