"""Messages of a chat: what pydantic would not look at before it is too late to say whose mistake it
is.
"""

from typing import Any

import pytest

from tta_serve.exceptions import RequestError
from tta_serve.serving.reading.routes import check_messages


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    "messages",
    [
        [user("x")],
        [user([{"type": "text", "text": "x"}])],
        [user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": ""}])],
        [user([{"type": "input_audio", "input_audio": {}}, {"type": "refusal", "refusal": "x"}])],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "assistant", "tool_calls": None}],
        [[user("x")], [user([{"type": "text", "text": "x"}])]],
        None,
        "what vLLM's model refuses",
        [5, None, user(5)],
    ],
)
def test_what_is_well_formed_or_refused_by_others_passes(messages: Any) -> None:
    check_messages(messages)


@pytest.mark.parametrize(
    ("messages", "param", "says"),
    [
        (
            [user({"type": "text", "text": "x"})],
            "messages.0.content",
            "a string or a list of parts",
        ),
        ([user("x"), user([5])], "messages.1.content.0", 'such as {"type": "text", "text": "..."}'),
        ([user(["x"])], "messages.0.content.0", "is an object"),
        ([user([None])], "messages.0.content.0", "is an object"),
        ([user([{"text": "x"}])], "messages.0.content.0.type", "it is missing; these are: "),
        (
            [user([{"type": "txt", "text": "x"}])],
            "messages.0.content.0.type",
            "'txt' is no kind of content",
        ),
        ([user([{"type": 5}])], "messages.0.content.0.type", "'5' is no kind of content"),
        ([user([{"type": ["text"]}])], "messages.0.content.0.type", "is no kind of content"),
        ([user([{"type": "x" * 9999}])], "messages.0.content.0.type", "is no kind of content"),
        ([user([{"type": "text"}])], "messages.0.content.0.text", "it should be a string"),
        (
            [user([{"type": "text", "text": None}])],
            "messages.0.content.0.text",
            "it should be a string",
        ),
        ([{"role": "assistant", "tool_calls": {}}], "messages.0.tool_calls", "it should be a list"),
        ([[user("x")], [user([5])]], "messages.1.0.content.0", "is an object"),
        ([], "messages", "a chat has at least one message"),
        ([[user("x")], []], "messages.1", "a chat has at least one message"),
    ],
)
def test_what_is_no_part_of_a_content_is_400_and_says_where_it_is(
    messages: Any, param: str, says: str
) -> None:
    with pytest.raises(RequestError) as error:
        check_messages(messages)
    assert (error.value.status, error.value.param) == (400, param)
    assert str(error.value).startswith(f"{param}: ")
    assert says in str(error.value)
    assert len(str(error.value)) < 600
