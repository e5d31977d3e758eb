"""What a request asks, where it stands in its conversation, and what of it policies may read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision import Prompt
from tta_serve.engine.client.placement import UserTurns
from tta_serve.serving.reading.request import GenerateRequest, Turn

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Which tables are there?"}
PARTS = [{"type": "text", "text": "And the"}, {"type": "text", "text": "columns?"}]
SECOND = {"role": "user", "content": PARTS}
REPLY = {"role": "assistant", "content": "Two."}


def asks(body: Any, key: str | None = None, **headers: str) -> GenerateRequest:
    """A request, whose headers have `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return GenerateRequest(
        body, named if key is None else {"authorization": f"Bearer {key}", **named}
    )


def turn_of(
    *messages: Any, key: str | None = None, session: str | None = None, **more: Any
) -> Turn:
    headers = {} if session is None else {"x_session_id": session}
    [turn] = asks({"messages": [*messages], **more}, key, **headers).turns()
    return turn


def words(tokens: list[int]) -> str:
    return "-".join(map(str, tokens))


def prompts(body: Any, *, read: str | None = None, **headers: str) -> list[Prompt]:
    return asks(body, **headers).prompts(None, read, words)


def test_a_follow_up_finds_the_turn_before_whoever_sends_it() -> None:
    first = turn_of(SYSTEM, FIRST, key="a")
    second = turn_of(SYSTEM, FIRST, REPLY, SECOND)
    third = turn_of(SYSTEM, FIRST, REPLY, SECOND, REPLY, FIRST, REPLY, key="b")
    assert first.before is None
    assert first.here is not None
    assert second.before == first.here
    assert third.before == second.here
    assert len({first.here, second.here, third.here}) == 3


def test_a_turn_is_another_if_anything_before_it_is() -> None:
    here = turn_of(SYSTEM, FIRST).here
    for other in ((FIRST,), (SYSTEM, SECOND), ({**SYSTEM, "content": "Be long."}, FIRST)):
        assert turn_of(*other).here != here
    before = turn_of(SYSTEM, FIRST, {**REPLY, "content": "Three."}, SECOND)
    assert before.before == here, "what was answered comes after the turn"


def test_the_order_of_a_messages_fields_makes_no_difference() -> None:
    assert turn_of(dict(reversed(FIRST.items()))) == turn_of(FIRST)


def test_a_session_goes_before_the_user_and_both_before_the_messages() -> None:
    named = turn_of(FIRST, key="a", session="s", user="u")
    assert named.before == named.here
    assert named == turn_of(SECOND, key="a", session="s", user="v")
    by_user = turn_of(FIRST, key="a", user="s")
    assert [by_user] == asks({"prompt": "x", "user": "s"}, "a", x_session_id="").turns()
    assert named != by_user


def test_a_session_may_be_named_in_the_body_and_the_header_goes_before_it() -> None:
    assert turn_of(FIRST, session_id="s") == turn_of(SECOND, session="s")
    assert turn_of(FIRST, session_id="t", session="s") == turn_of(SECOND, session="s")
    assert asks({"session_id": 7}).session is None


def test_the_user_may_be_named_as_anthropic_does() -> None:
    anthropic = asks({"messages": [FIRST], "metadata": {"user_id": "u"}})
    assert anthropic.user == "u"
    assert anthropic.turns() == [turn_of(SECOND, user="u")]
    assert asks({"metadata": {"user_id": "u"}, "user": "v"}).user == "v"
    junk: list[Any] = [None, "u", [], {"user_id": 7}, {"user_id": ""}]
    for metadata in junk:
        assert asks({"metadata": metadata}).user is None


def test_a_session_is_its_tenants() -> None:
    turns = {turn_of(FIRST, key=key, session="s") for key in ("a", "b", None)}
    assert len(turns) == 3


def test_without_user_turn_or_in_a_completion_there_is_no_conversation() -> None:
    assert turn_of(SYSTEM) == Turn()
    assert asks({"prompt": "x", "user": None}).turns() == [Turn()]


def test_several_chats_are_each_in_the_conversation_of_their_messages() -> None:
    both = asks({"messages": [[FIRST], [SYSTEM, FIRST, REPLY, SECOND]]}, x_session_id="s")
    assert both.count == 2
    assert both.turns() == [turn_of(FIRST), turn_of(SYSTEM, FIRST, REPLY, SECOND)]


def test_several_texts_are_in_no_conversation_even_of_a_session() -> None:
    assert asks({"prompt": ["a", "b", "c"], "user": "u"}, x_session_id="s").turns() == [Turn()] * 3
    [one] = asks({"prompt": ["a"]}, x_session_id="s").turns()
    assert one.here is not None, "one of a list is one"


def test_a_prompt_is_the_last_user_turn_and_knows_its_tenant_by_a_hash() -> None:
    body = {"messages": [FIRST, REPLY, SECOND]}
    [found] = asks(body, "key").prompts({"sql": 1.0}, None, words)
    assert (found.user_turn, found.chat, found.preference) == (
        "And the\ncolumns?",
        True,
        {"sql": 1.0},
    )
    assert found.in_prompt
    assert found.tenant is not None
    assert "key" not in found.tenant
    assert found.tenant == asks({"messages": [FIRST]}, "key").tenant
    for headers in ({}, {"authorization": "Bearer "}):
        assert GenerateRequest(body, headers).tenant is None


def test_anthropics_key_is_a_tenants_too() -> None:
    assert asks({}, x_api_key="key").tenant == asks({}, "key").tenant


def test_a_completion_is_read_as_text() -> None:
    def read(prompt: Any) -> list[str]:
        found = prompts({"prompt": prompt})
        assert not any(one.chat for one in found)
        assert all(one.in_prompt for one in found)
        return [one.user_turn for one in found]

    assert prompts({"prompt": "one"}) == [Prompt("one", chat=False)]
    assert read([1, 2]) == ["1-2"]
    assert read(["one", "two"]) == ["one", "two"]
    assert read([[1, 2], [3]]) == ["1-2", "3"]
    assert read([]) == read(None) == [""]


def test_responses_have_one_chat() -> None:
    assert prompts({"input": "one"}) == [Prompt("one")]
    told = [SYSTEM, {"role": "user", "content": [{"type": "input_text", "text": "two"}]}]
    assert prompts({"input": told}) == [Prompt("two")]
    assert (
        asks({"input": "one"}).turns()
        == asks({"input": [{"role": "user", "content": "one"}]}).turns()
    )
    called = [FIRST, {"type": "function_call_output", "call_id": "1", "output": "x"}]
    assert prompts({"input": called}) == [Prompt(FIRST["content"])]


def test_each_chat_of_a_batch_is_read() -> None:
    assert [one.user_turn for one in prompts({"messages": [[FIRST], [FIRST, REPLY, SECOND]]})] == [
        FIRST["content"],
        "And the\ncolumns?",
    ]


def test_a_text_given_for_policies_is_read_in_place_of_every_prompt_and_stands_in_none() -> None:
    found = prompts({"prompt": ["one", "two"]}, read="that")
    assert found == [Prompt("that", chat=False, in_prompt=False)] * 2
    assert prompts({"messages": [FIRST]}, read="that") == [Prompt("that", in_prompt=False)]


def test_what_beam_search_makes_of_several_prompts_cannot_be_told_apart_and_is_decided_as_one() -> (
    None
):
    found = prompts({"prompt": ["one", "two"], "use_beam_search": True})
    assert found == [Prompt("one\ntwo", chat=False, in_prompt=False)]
    [alone] = prompts({"prompt": "one", "use_beam_search": True})
    assert alone.in_prompt


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (
            ["a", {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "x"}}],
            "a\nb",
        ),
        (None, ""),
        ([], ""),
        ([None, 7, {"text": 7}], ""),
        ({"text": "x"}, ""),
    ],
)
def test_of_a_content_its_texts_are_read(content: Any, text: str) -> None:
    [found] = prompts({"messages": [{"role": "user", "content": content}]})
    assert found.user_turn == text


@pytest.mark.parametrize(("n", "samples"), [(None, 1), (0, 1), (-3, 1), (4, 4), ("4", 1), (2.5, 1)])
def test_samples_are_what_n_says_if_that_can_be(n: Any, samples: int) -> None:
    assert asks({"prompt": "x", "n": n}).samples == samples


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "x"])
)
KEYS = st.sampled_from(["role", "content", "text", "user_id", "type", "x"])
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12
)
FIELDS = ["model", "messages", "input", "prompt", "n", "stream", "user", "session_id", "metadata"]


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_whatever_a_body_is_it_can_be_read_before_anybody_has_checked_it(
    body: dict[str, Any],
) -> None:
    request = asks(body)
    assert request.count >= 1
    assert request.samples >= 1
    assert len(request.turns()) == request.count
    assert isinstance(request.streams, bool)
    assert isinstance(request.searches, bool)
    for name in (request.model, request.user, request.session, request.tenant):
        assert name is None or isinstance(name, str)


def test_the_texts_of_the_first_and_the_last_user_turn() -> None:
    [turns] = asks({"messages": [SYSTEM, FIRST, REPLY, SECOND]}).user_turns()
    assert turns == UserTurns("Which tables are there?", "And the\ncolumns?")
    [turns] = asks({"messages": [FIRST]}).user_turns()
    assert turns.first == turns.last == FIRST["content"]
    assert asks({"messages": [SYSTEM]}).user_turns() == [UserTurns("", "")]
    assert asks({"messages": "rubbish"}).user_turns() == [UserTurns("", "")]
    assert asks({"prompt": ["a", "b"]}).user_turns() == [UserTurns()] * 2
    both = {"messages": [[FIRST], [SECOND]]}
    assert len(asks(both).user_turns()) == 2
    assert asks({**both, "use_beam_search": True}).user_turns() == [UserTurns()]


def test_a_conversation_is_told_by_its_name_else_by_how_it_began() -> None:
    def key(*messages: Any, **more: Any) -> str:
        headers = {"x_session_id": more.pop("session")} if "session" in more else {}
        return asks({"messages": [*messages], **more}, **headers).conversation

    first = key(SYSTEM, FIRST)
    assert key(SYSTEM, FIRST, REPLY, SECOND) == first, "a later turn of it"
    assert key(FIRST) != first
    assert key(SYSTEM, SECOND) != first
    assert key(FIRST, session="s") == key(SECOND, session="s") != key(FIRST, session="t")
    assert key(FIRST, user="u") == key(SECOND, user="u") != key(FIRST, session="u")
    assert key(SYSTEM) != key(), "without a user turn it is all that is said"
    texts = [asks({"prompt": prompt}).conversation for prompt in ("a", ["a", "b"], "b", [1, 2])]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts)) == 3
