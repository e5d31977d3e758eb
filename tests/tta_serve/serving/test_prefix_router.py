"""What Ray's prefix-aware router reads of requests of all shapes."""

from types import SimpleNamespace
from typing import Any

import pytest

from tta_serve.serving.prefix_router import PrefixRouter


def read(**body: Any) -> str | None:
    router = PrefixRouter.__new__(PrefixRouter)
    return router._extract_text_from_request(SimpleNamespace(args=[SimpleNamespace(**body)]))


def test_chats_and_prompts_are_read_from_their_beginning() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    assert read(messages=chat) == "Be brief.Which?"
    assert read(prompt="SELECT") == "SELECT"


@pytest.mark.parametrize("body", [{}, {"input": "x"}, {"messages": []}, {"prompt": [1, 2, 3]}])
def test_what_it_cannot_read_is_left_to_the_load(body: dict[str, Any]) -> None:
    assert read(**body) is None
