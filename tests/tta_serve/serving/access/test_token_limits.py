"""How long prompts and answers may be, by the server and by the key."""

from typing import Any

import pytest
from vllm import SamplingParams

from tta_serve.config.access import KeyConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.key_ring import TokenLimits


@pytest.mark.parametrize(
    ("server", "key", "least"),
    [(None, None, None), (8, None, 8), (None, 4, 4), (8, 4, 4), (2, 4, 2)],
)
def test_the_tighter_bound_holds(server: int | None, key: int | None, least: int | None) -> None:
    limits = TokenLimits.of(
        ServerConfig(max_prompt_tokens=server, max_answer_tokens=server),
        KeyConfig(sha256="0" * 64, max_prompt_tokens=key, max_answer_tokens=key),
    )
    assert limits == TokenLimits(least, least)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_who_asks_for_more_is_told_how_much_there_is(field: str) -> None:
    limits = TokenLimits(answer=8)
    fine: list[Any] = [8, 1, None, "many", True]
    for asked in fine:
        limits.check_body({field: asked})
    with pytest.raises(RequestError, match=f"{field}: 9 tokens.*at most 8"):
        limits.check_body({field: 9})
    TokenLimits().check_body({field: 10**9})


def test_who_asks_for_no_length_gets_what_there_is() -> None:
    for given, limit, wanted in ((100, 8, 8), (4, 8, 4), (None, 8, 8), (100, None, 100)):
        params = SamplingParams(max_tokens=given)
        TokenLimits(answer=limit).bound([1, 2, 3], params)
        assert params.max_tokens == wanted


def test_a_prompt_that_is_too_long_is_refused() -> None:
    TokenLimits(prompt=3).bound([1, 2, 3], SamplingParams())
    with pytest.raises(RequestError, match="4 tokens; it may have at most 3"):
        TokenLimits(prompt=3).bound([1, 2, 3, 4], SamplingParams())
