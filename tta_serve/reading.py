"""What policies may read of an OpenAI request, and where it stands in its conversation."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.policy import Prompt


def prompt_of(request: Any, headers: Mapping[str, str], preference: Mapping[str, float] | None, detokenize: Any) -> Prompt:
    """What a policy may read of a request. headers: by lower-case name"""
    key = headers.get("authorization", "").removeprefix("Bearer ").strip()
    tenant = hashlib.sha256(key.encode()).hexdigest() if key else None
    return Prompt(user_turn(request, detokenize), hasattr(request, "messages"), tenant, preference, _single(request))


def user_turn(request: Any, detokenize: Any) -> str:
    """What a policy reads: the text of a chat's last user turn, or a completion's prompt.

    A completion with several prompts is one request with one mix, so all of them count.
    """
    if hasattr(request, "messages"):
        turns = [m for m in request.messages if m.get("role") == "user"]
        return _content(turns[-1].get("content")) if turns else ""
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], int):
        return str(detokenize(prompt))
    return "\n".join(p if isinstance(p, str) else detokenize(p) for p in prompt or ())


def _single(request: Any) -> bool:
    """Whether it is one prompt."""
    prompt = getattr(request, "prompt", None)
    return not isinstance(prompt, list) or len(prompt) == 1 or any(isinstance(part, int) for part in prompt[:1])


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or () if part.get("type") == "text")


@dataclass(frozen=True)
class Turn:
    """Where a request stands in a conversation.

    before: the key of the turn before it, None for a first one   here: its own, None if it is in no conversation
    """

    before: str | None = None
    here: str | None = None


def session_of(request: Any, headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The body's `user`, and the header `x-session-id`, None where a request has none."""
    return getattr(request, "user", None) or None, headers.get("x-session-id") or None


def turn_of(request: Any, headers: Mapping[str, str], tenant: str | None) -> Turn:
    """A request's place by the header `x-session-id`, else the body's `user`, else by the conversation that it repeats.

    The first two are one conversation of one tenant for as long as they come. Without them a chat is found by its messages up
    to the last but one user turn, whoever sends it: equal prefixes have equal mixes. A completion has no turns.
    """
    user, session = session_of(request, headers)
    for kind, name in (("session", session), ("user", user)):
        if name:
            key = hashlib.sha256(json.dumps([kind, tenant, name]).encode()).hexdigest()
            return Turn(key, key)
    text = hashlib.sha256()
    ends: list[str] = []
    for message in getattr(request, "messages", ()):
        text.update(json.dumps(message, sort_keys=True, default=str).encode())
        if message.get("role") == "user":
            ends.append(text.hexdigest())
    return Turn(*[None, None, *ends][-2:])
