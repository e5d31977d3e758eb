"""Where mixes act in prompts of conversations, and what their earlier turns ran as."""

from typing import Any

import pytest

from adapters.mix import Mix
from router.decision import ActsFrom
from router.scoring.chat_turns import encode_opening
from tests.factories.placed_turns import SYSTEM, Letters
from tta_serve.engine import wire
from tta_serve.engine.client.placement import PromptHistory, PromptPlacer, UserTurns
from tta_serve.engine.wire import EarlierMix
from tta_serve.protocol import MergeInfo
from tta_serve.serving.routing.route import DecidedTurn

DIGESTS = {"math": "d1", "sql": "d2"}
MATH, SQL = ({name: 1.0} for name in DIGESTS)
FIRST = "which one? "
SECOND = "which one? yes. and then? "
TURNS = UserTurns("which one?", "and then?")
BEGINS, FOLLOWS = len(SYSTEM), len(SYSTEM + "which one? yes. ")


class Marked(Letters):
    """A tokenizer whose template opens an answer by a mark."""

    chat_template = "a template"

    def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        said = "".join(turn["content"] for turn in turns)
        return f"{said}>>" if add_generation_prompt else said


def encode(text: str) -> list[int]:
    return Letters().encode(text, add_special_tokens=False)


def run(  # noqa: PLR0913 - one thing each
    text: str,
    mix: dict[str, float],
    history: PromptHistory | None = None,
    acts_from: ActsFrom = "user_turn",
    *,
    keeps: bool = False,
    tokenizer: Any = None,
    turns: UserTurns = TURNS,
) -> tuple[Any, MergeInfo, PromptHistory | None]:
    """Return what the engine runs a prompt as, what the answer says, and what is remembered."""
    info = MergeInfo(policy="x", experts={}, mix="")
    kept: list[PromptHistory] = []
    adapter = wire.make_mix_request(Mix.of(mix), DIGESTS)
    turn = DecidedTurn(adapter, info, acts_from, history, keeps, kept.append)
    placer = PromptPlacer(tokenizer or Letters(), 512)
    placed = turn.place(placer, encode(SYSTEM + text), turns)
    return placed, info, kept[0] if kept else None


@pytest.mark.parametrize(
    ("acts_from", "token"),
    [
        ("start", 0),
        ("user_turn", BEGINS),
        ("last_user_turn", FOLLOWS),
        ("answer", len(SYSTEM + SECOND)),
    ],
)
def test_a_mix_acts_from_where_it_is_asked_to(acts_from: ActsFrom, token: int) -> None:
    placed, info, _ = run(SECOND + ">>", MATH, None, acts_from, tokenizer=Marked())
    assert wire.read_order(placed).acts_from == token
    assert info.acts_from == acts_from


def test_what_is_not_found_is_the_start_and_the_answer_says_so() -> None:
    placed, info, _ = run(SECOND, MATH, turns=UserTurns("another", "and another"))
    assert (wire.read_order(placed).acts_from, info.acts_from) == (0, "start")
    placed, info, _ = run(SECOND, MATH, turns=UserTurns())
    assert (wire.read_order(placed).acts_from, info.acts_from) == (0, "start")


def test_without_a_template_an_answer_begins_with_what_the_last_token_says() -> None:
    placed, info, _ = run(SECOND, MATH, None, "answer")
    assert wire.read_order(placed).acts_from == len(SYSTEM + SECOND) - 1
    assert info.acts_from == "answer"
    assert encode_opening(Letters()) == []


def test_a_mix_that_is_kept_acts_from_where_it_began() -> None:
    first, _, history = run(FIRST, MATH)
    second, info, later = run(SECOND, MATH, history, keeps=True)
    assert second == first
    assert info.acts_from == "user_turn"
    assert history is not None
    assert later is not None
    assert later.parts == history.parts
    assert later.tokens > history.tokens


def test_another_mix_acts_from_its_turn_and_what_stands_before_stays() -> None:
    first, _, history = run(FIRST, MATH)
    second, info, later = run(SECOND, SQL, history)
    wanted = wire.read_order(second)
    assert (wanted.acts_from, info.acts_from) == (FOLLOWS, "last_user_turn")
    [ran] = wanted.earlier
    assert (ran.start, ran.name, ran.mix) == (BEGINS, first.lora_name, {"d1": 1.0})
    assert later is not None
    assert [part.mix for part in later.parts] == [{"d1": 1.0}, {"d2": 1.0}]


def test_the_base_shares_all_with_the_base_and_follows_mixes() -> None:
    placed, _, history = run(FIRST, {})
    assert placed is None
    later, _, _ = run(SECOND, SQL, history)
    assert (wire.read_order(later).acts_from, wire.read_order(later).earlier) == (FOLLOWS, ())

    _, _, history = run(FIRST, MATH)
    base, info, later_history = run(SECOND, {}, history)
    wanted = wire.read_order(base)
    assert (base.lora_name, wanted.mix, wanted.acts_from) == ("base", {}, FOLLOWS)
    assert [part.mix for part in wanted.earlier] == [{"d1": 1.0}]
    assert info.acts_from == "last_user_turn"
    kept, _, _ = run(SECOND + "so? ", {}, later_history, keeps=True)
    assert kept == base


@pytest.mark.parametrize("keeps", [False, True])
def test_a_prompt_that_does_not_go_on_from_the_last_one_starts_anew(keeps: bool) -> None:
    _, _, history = run("which two? ", MATH, turns=UserTurns("which two?", "which two?"))
    placed, info, _ = run(SECOND, MATH, history, keeps=keeps)
    wanted = wire.read_order(placed)
    assert (wanted.acts_from, wanted.earlier, info.acts_from) == (BEGINS, (), "user_turn")


def test_more_mixes_than_can_be_told_apart_start_anew() -> None:
    text, history = FIRST, None
    lengths = []
    for turn in range(wire.EARLIER + 2):
        asked = UserTurns("which one?", "which one?")
        placed, _, history = run(text, {"math": 0.05 * (turn + 1)}, history, turns=asked)
        lengths.append(len(wire.read_order(placed).earlier))
        text += "yes. which one? "
    assert lengths == [*range(wire.EARLIER + 1), 0]


def test_equal_mixes_of_all_layers_and_of_upper_ones_are_told_apart() -> None:
    tokens = encode(SYSTEM + FIRST)
    for count, continues in ((wire.EARLIER, True), (wire.EARLIER + 1, False)):
        mixes = [{"d1": 0.05 * (1 + i // 2)} for i in range(count)]
        parts = [
            EarlierMix(BEGINS, f"turn-{i}", mix, upper=i % 2 == 0) for i, mix in enumerate(mixes)
        ]
        placed, _, _ = run(SECOND, SQL, PromptHistory.of(tokens, parts))
        assert bool(wire.read_order(placed).earlier) == continues


def test_what_is_in_the_weights_acts_from_the_start() -> None:
    adapter = wire.make_mix_request(Mix.of(MATH), DIGESTS, dense={"d1"})
    info = MergeInfo(policy="x", experts={}, mix="")
    turn = DecidedTurn(adapter, info, "user_turn")
    assert turn.place(PromptPlacer(Letters(), 512), encode(SYSTEM + FIRST), TURNS) == adapter
    assert info.acts_from == "start"
