"""What a request asks, read from its body and headers the same way for every route.

body                                   prompts                         read by policies
messages: [{role, content}, ...]       one chat                        the last user turn's text
messages: [[{...}, ...], ...]          several chats (batch)           of each
input: "..." | [{role, content}, ...]  one chat (responses)            the last user turn's text
prompt: "..." | [1, 2]                 one text                        all of it
prompt: ["...", ...] | [[1, 2], ...]   several texts                   each
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.decision import Prompt
from tta_serve.engine.client.placement import UserTurns
from tta_serve.serving.access.key_ring import ANYBODY, UNLIMITED, Caller, TokenLimits

REQUEST = "tta.request"
"""The key of an ASGI scope under which the edge leaves what it has read: a `GenerateRequest`."""

Detokenize = Callable[[list[int]], str]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """Where a request stands in a conversation."""

    before: str | None = None
    """The key of the turn before it, None for a first one."""
    here: str | None = None
    """Its own, None if it is in no conversation."""


@dataclass(frozen=True)
class GenerateRequest:
    """A request of a route that generates."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    """By lower-case name."""
    caller: Caller = ANYBODY
    """Who sends it."""
    ends: float = math.inf
    """When nobody wants its answer any more, by the monotonic clock."""
    limits: TokenLimits = UNLIMITED
    """How long its prompts and answers may be."""

    @property
    def model(self) -> str | None:
        """The name that it sends, None if it sends none."""
        model = self.body.get("model")
        return model if isinstance(model, str) else None

    @property
    def left_s(self) -> float:
        """Seconds until nobody wants its answer any more."""
        return self.ends - time.monotonic()

    @property
    def user(self) -> str | None:
        """OpenAI's `user`, or Anthropic's `metadata.user_id`."""
        metadata = self.body.get("metadata")
        by_metadata = metadata.get("user_id") if isinstance(metadata, Mapping) else None
        return _name(self.body.get("user")) or _name(by_metadata)

    @property
    def session(self) -> str | None:
        """The header `x-session-id`, else the body's `session_id`."""
        return self.headers.get("x-session-id") or _name(self.body.get("session_id"))

    @property
    def tenant(self) -> str | None:
        """Whose it is: that of its key, else a hash of whatever key it carries."""
        if self.caller.tenant is not None:
            return self.caller.tenant
        key = self.headers.get("authorization", "").removeprefix(
            "Bearer "
        ).strip() or self.headers.get("x-api-key")
        return hashlib.sha256(key.encode()).hexdigest() if key else None

    @property
    def streams(self) -> bool:
        return self.body.get("stream") is True

    @property
    def searches(self) -> bool:
        """Whether it is answered by beam search, whose steps are prompts to the engine."""
        return self.body.get("use_beam_search") is True

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        n = self.body.get("n")
        return n if isinstance(n, int) and n > 0 else 1

    @property
    def chats(self) -> Sequence[Sequence[Message]] | None:
        """The conversations that it sends, None if it sends texts."""
        if "messages" in self.body:
            messages = self.body["messages"]
            many = (
                isinstance(messages, list)
                and messages
                and all(isinstance(one, list) for one in messages)
            )
            return [_messages(one) for one in messages] if many else [_messages(messages)]
        if "input" in self.body:
            given = self.body["input"]
            return [
                [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
            ]
        return None

    @property
    def texts(self) -> Sequence[str | list[int]]:
        """The prompts of a completion."""
        prompt = self.body.get("prompt")
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return prompt if several else [prompt or ""]  # type: ignore[return-value]

    @property
    def count(self) -> int:
        """How many prompts."""
        chats = self.chats
        return len(self.texts if chats is None else chats)

    def prompts(
        self, preference: Mapping[str, float] | None, read: str | None, detokenize: Detokenize
    ) -> list[Prompt]:
        """What policies may read, of each prompt.

        Args:
            read: A text that they are to read instead.
        """
        chats = self.chats
        if chats is None:
            turns = [one if isinstance(one, str) else detokenize(one) for one in self.texts]
        else:
            turns = [_user_turn(chat) for chat in chats]
        if self.searches and len(turns) > 1:
            return [
                Prompt(
                    "\n".join(turns), chats is not None, self.tenant, preference, in_prompt=False
                )
            ]
        if read is not None:
            turns = [read] * len(turns)
        return [
            Prompt(turn, chats is not None, self.tenant, preference, in_prompt=read is None)
            for turn in turns
        ]

    def user_turns(self) -> list[UserTurns]:
        """Return each prompt's first and last user turns; None of those that are no chats."""
        chats = self.chats
        if chats is None:
            return [UserTurns()] * self.count
        if self.searches and len(chats) > 1:
            return [UserTurns()]
        return [UserTurns(_user_turn(chat, 0), _user_turn(chat)) for chat in chats]

    def turns(self) -> list[Turn]:
        """Where each prompt stands in its conversation.

        By the session, else the user: one conversation of one tenant for as long as they come.
        Without them a chat is found by its messages up to the last but one user turn, whoever of a
        tenant, or without keys, sends it: equal prefixes have equal mixes. A completion, and each
        of several prompts, has no turns of its own.
        """
        chats = self.chats
        count = self.count
        if count == 1 and (key := self._named_conversation):
            return [Turn(key, key)]
        if chats is None:
            return [Turn()] * count
        return [_turn_of(chat, self.caller.tenant) for chat in chats]

    @property
    def conversation(self) -> str:
        """What tells the conversation of its first prompt from others, whichever turn it is.

        That is the session, else the user, else what was said up to the first user turn.
        """
        if key := self._named_conversation:
            return key
        chats = self.chats
        if chats is None:
            return _digest(["text", self.texts[0]])
        messages = chats[0] if chats else []
        said = [message.get("role") for message in messages]
        first = said.index("user") + 1 if "user" in said else len(said)
        return _digest(["chat", *messages[:first]])

    @property
    def _named_conversation(self) -> str | None:
        """The key of the conversation that the session or the user names, None without either."""
        for kind, name in (("session", self.session), ("user", self.user)):
            if name:
                return _digest([kind, self.tenant, name])
        return None


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _messages(value: Any) -> list[Message]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _user_turn(messages: Sequence[Message], which: int = -1) -> str:
    turns = [message for message in messages if message.get("role") == "user"]
    return _text(turns[which].get("content")) if turns else ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [
        part if isinstance(part, str) else part.get("text")
        for part in parts
        if isinstance(part, (str, Mapping))
    ]
    return "\n".join(text for text in texts if isinstance(text, str))


def _turn_of(messages: Sequence[Message], tenant: str | None) -> Turn:
    text = hashlib.sha256((tenant or "").encode())
    ends: list[str] = []
    for message in messages:
        text.update(json.dumps(message, sort_keys=True, default=str).encode())
        if message.get("role") == "user":
            ends.append(text.hexdigest())
    return Turn(*[None, None, *ends][-2:])
