"""What all turns of a conversation have in common, by which several replicas are told apart."""

from types import SimpleNamespace
from typing import Any

import pytest

from tta_serve.serving.conversation_router import ConversationRouter, conversation_key

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Which tables?"}
REPLY = {"role": "assistant", "content": "Two."}
SECOND = {"role": "user", "content": "And columns?"}


def test_all_turns_of_a_conversation_have_one_key() -> None:
    turns = [[SYSTEM, FIRST], [SYSTEM, FIRST, REPLY, SECOND], [SYSTEM, FIRST, REPLY, FIRST, REPLY]]
    assert len({conversation_key({"messages": turn}) for turn in turns}) == 1
    assert conversation_key({"messages": [SYSTEM, SECOND]}) != conversation_key(
        {"messages": [SYSTEM, FIRST]}
    )


def test_a_session_goes_before_a_user_and_both_before_the_messages() -> None:
    body: dict[str, Any] = {"messages": [FIRST], "user": "u"}
    assert conversation_key(body) == conversation_key({"messages": [SECOND], "user": "u"})
    assert conversation_key({**body, "session_id": "s"}) == conversation_key(
        {"session_id": "s", "messages": [SECOND]}
    )
    assert conversation_key({"user": "s"}) != conversation_key({"session_id": "s"})


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": "x"}, {"messages": 5}, {"messages": [SYSTEM]}, {"user": 5, "messages": []}],
)
def test_what_is_in_no_conversation_has_no_key(body: dict[str, Any]) -> None:
    assert conversation_key(body) is None


def test_a_body_that_the_proxy_has_not_read_has_no_key() -> None:
    asked = SimpleNamespace(
        metadata=SimpleNamespace(session_id="", internal_request_id="r"), args=[b"pickled"]
    )
    read = SimpleNamespace(metadata=asked.metadata, args=[SimpleNamespace(user="u")])
    router = ConversationRouter.__new__(ConversationRouter)
    assert router._routing_key(asked) == "r"
    assert router._routing_key(read) == conversation_key({"user": "u"})
