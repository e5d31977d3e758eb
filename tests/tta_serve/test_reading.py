"""Where a request stands in its conversation, and what of it policies may read."""

from types import SimpleNamespace
from typing import Any

from router.policy import Prompt
from tta_serve.serving.request import Turn, prompt_of, turn_of

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Which tables are there?"}
SECOND = {"role": "user", "content": [{"type": "text", "text": "And the"}, {"type": "text", "text": "columns?"}]}
REPLY = {"role": "assistant", "content": "Two."}


def chat(*messages: Any, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(messages=[*messages], **more)


def test_a_follow_up_finds_the_turn_before_whoever_sends_it() -> None:
    first = turn_of(chat(SYSTEM, FIRST), {}, "a")
    second = turn_of(chat(SYSTEM, FIRST, REPLY, SECOND), {}, None)
    third = turn_of(chat(SYSTEM, FIRST, REPLY, SECOND, REPLY, FIRST, REPLY), {}, "b")
    assert first.before is None
    assert first.here is not None
    assert second.before == first.here
    assert third.before == second.here
    assert len({first.here, second.here, third.here}) == 3


def test_a_turn_is_another_if_anything_before_it_is() -> None:
    here = turn_of(chat(SYSTEM, FIRST), {}, None).here
    for other in (chat(FIRST), chat(SYSTEM, SECOND), chat({**SYSTEM, "content": "Be long."}, FIRST)):
        assert turn_of(other, {}, None).here != here
    before = turn_of(chat(SYSTEM, FIRST, {**REPLY, "content": "Three."}, SECOND), {}, None)
    assert before.before == here, "what was answered comes after the turn"


def test_a_session_goes_before_the_user_and_both_before_the_messages() -> None:
    named = turn_of(chat(FIRST, user="u"), {"x-session-id": "s"}, "a")
    assert named.before == named.here
    assert named == turn_of(chat(SECOND, user="v"), {"x-session-id": "s"}, "a")
    by_user = turn_of(chat(FIRST, user="s"), {}, "a")
    assert by_user == turn_of(SimpleNamespace(prompt="x", user="s"), {"x-session-id": ""}, "a")
    assert named != by_user


def test_a_session_is_its_tenants() -> None:
    turns = {turn_of(chat(FIRST), {"x-session-id": "s"}, tenant) for tenant in ("a", "b", None)}
    assert len(turns) == 3


def test_without_user_turn_or_in_a_completion_there_is_no_conversation() -> None:
    assert turn_of(chat(SYSTEM), {}, None) == Turn()
    assert turn_of(SimpleNamespace(prompt="x", user=None), {}, None) == Turn()


def test_a_prompt_is_the_last_user_turn_and_knows_its_tenant_by_a_hash() -> None:
    found = prompt_of(chat(FIRST, REPLY, SECOND), {"authorization": "Bearer key"}, {"sql": 1.0}, None)
    assert (found.user_turn, found.chat, found.preference) == ("And the\ncolumns?", True, {"sql": 1.0})
    assert found.tenant is not None
    assert "key" not in found.tenant
    assert found.tenant == prompt_of(chat(FIRST), {"authorization": "Bearer key"}, None, None).tenant
    for headers in ({}, {"authorization": "Bearer "}):
        assert prompt_of(chat(FIRST), headers, None, None).tenant is None


def test_a_completion_is_read_as_text() -> None:
    def read(prompt: Any) -> Prompt:
        return prompt_of(SimpleNamespace(prompt=prompt), {}, None, lambda tokens: "-".join(map(str, tokens)))

    assert read("one") == Prompt("one", chat=False)
    assert read([1, 2]).user_turn == "1-2"
    assert read(["one", "two"]).user_turn == "one\ntwo"
    assert read([[1, 2], [3]]).user_turn == "1-2\n3"
    assert read([]).user_turn == read(None).user_turn == ""
