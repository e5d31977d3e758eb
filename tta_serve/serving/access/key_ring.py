"""Whose key a request carries, where that may go, and how many tokens it may have."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_serve.config.access import AccessConfig, KeyConfig, Scope
from tta_serve.config.loading import KEY_VARIABLE
from tta_serve.config.sections import ServerConfig
from tta_serve.exceptions import RequestError

CALLER = "tta.caller"
"""The key of an ASGI scope under which the edge leaves a `Caller`."""

_MANAGED = ("/admin/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_OPEN = ("/healthz", "/readyz", "/console")
_OPEN_FOLDER = "/console/"
"""The files of a page; what it asks the server carries keys."""
_BY_PATH: dict[str, Scope] = {"/v1/feedback": "feedback", "/metrics": "metrics"}
_ASKED_BY = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""The fields by which routes are asked for the length of an answer."""
_EVERYTHING = KeyConfig(sha256="0" * 64, scopes=frozenset({"infer", "feedback", "metrics"}))


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    label: str | None
    """The label of the key, None where the server asks for none."""
    rights: KeyConfig
    """What the key may do."""

    @property
    def tenant(self) -> str | None:
        """Whose key it is: keys of one tenant share conversations, batches and cached prefixes."""
        return self.rights.tenant or self.label


ANYBODY = Caller(None, _EVERYTHING)
"""Who sends a request to a server that asks for no keys."""
_ADMINISTRATOR = Caller("admin", KeyConfig(sha256="0" * 64, scopes=frozenset({"admin", "metrics"})))


class KeyRing:
    """The keys of a server, of which it knows hashes alone.

    Args:
        config: The keys. Without any, all but management is open to everybody.
        admin_key: The key of management that the environment gives, None for none.
    """

    def __init__(self, config: AccessConfig, admin_key: str | None) -> None:
        self._open = not config.keys
        self._keys = [
            (Caller(label, key), key.sha256.encode()) for label, key in config.keys.items()
        ]
        if admin_key:
            self._keys.insert(0, (_ADMINISTRATOR, _hash(admin_key)))

    def identify(self, path: str, headers: Mapping[str, str]) -> Caller:
        """Return who sends a request.

        Args:
            path: Where it goes.
            headers: By lower-case name.

        Raises RequestError: 401 without a key that is known, 403 for one that may not go there.
        """
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return ANYBODY
        scope: Scope = "admin" if is_management(path) else _BY_PATH.get(path, "infer")
        if scope == "admin":
            self._check_managed()
        elif self._open:
            return ANYBODY

        caller = self._find(_hash(_credential(headers)), managed=scope == "admin")
        if scope not in caller.rights.scopes:
            raise RequestError(
                f"the key {caller.label!r} has no scope {scope!r}; it has:"
                f" {', '.join(sorted(caller.rights.scopes))}",
                status=403,
            )
        return caller

    def _find(self, given: bytes, *, managed: bool) -> Caller:
        # All are compared, each in constant time: how long it takes tells nothing of a key.
        found = [caller for caller, known in self._keys if hmac.compare_digest(given, known)]
        if not found:
            what = "management wants its own key" if managed else "this server wants a key"
            raise RequestError(
                f"{what}: Authorization: Bearer KEY",
                status=401,
                headers={"www-authenticate": "Bearer"},
            )
        return found[0]

    def _check_managed(self) -> None:
        if not any("admin" in caller.rights.scopes for caller, _ in self._keys):
            raise RequestError(
                f"management is off; start the server with {KEY_VARIABLE} in its environment, or"
                " give a key of its config the scope admin",
                status=403,
            )


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


def is_management(path: str) -> bool:
    """Return whether a path leads to management."""
    return path.startswith(_MANAGED)


def _credential(headers: Mapping[str, str]) -> str:
    """Return the key that a request carries, as OpenAI's clients send it, or Anthropic's."""
    given = headers.get("authorization", "").removeprefix("Bearer ")
    return given or headers.get("x-api-key", "")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).hexdigest().encode()


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
