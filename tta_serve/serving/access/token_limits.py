"""How many tokens a request may send and ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_serve.config.access import KeyConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.exceptions import RequestError

_ASKED_BY = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""The fields by which routes are asked for the length of an answer."""


@dataclass(frozen=True)
class TokenLimits:
    """The bounds of one request, each None for none but what the base can."""

    prompt: int | None = None
    """Of a prompt."""
    answer: int | None = None
    """Of an answer."""

    @classmethod
    def of(cls, server: ServerConfig, key: KeyConfig) -> "TokenLimits":
        """Return the tighter of a server's bounds and a key's."""
        return cls(
            _least(server.max_prompt_tokens, key.max_prompt_tokens),
            _least(server.max_answer_tokens, key.max_answer_tokens),
        )

    def check_body(self, body: Mapping[str, Any]) -> None:
        """Raise RequestError, 400, for a body that asks for longer answers."""
        for name in _ASKED_BY:
            asked = body.get(name)
            if self.answer is not None and isinstance(asked, int) and asked > self.answer:
                raise RequestError(
                    f"{name}: {asked} tokens are asked for; an answer has at most {self.answer}",
                    param=name,
                )

    def bound(self, tokens: Sequence[int], params: Any) -> None:
        """Bound the answer to a prompt whose request named no length.

        Args:
            tokens: The prompt.
            params: vLLM's parameters of its answer, which are changed.

        Raises RequestError, 400, for a prompt that is too long.
        """
        if self.prompt is not None and len(tokens) > self.prompt:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; it may have at most {self.prompt}",
                param="prompt",
            )
        params.max_tokens = _least(params.max_tokens, self.answer)


UNLIMITED = TokenLimits()


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
