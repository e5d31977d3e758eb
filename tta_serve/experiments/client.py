"""A running server's management, as the command line asks for it."""

import os
from typing import Any

import httpx

from tta_serve.config import KEY_VARIABLE, ConfigError

_TIMEOUT_S = 120


def call(url: str, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
    """The answer's JSON. headers: with `_` for `-`

    Raises ConfigError if there is no key, no server, or the server refuses.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ConfigError(f"set {KEY_VARIABLE} to the key that the server was started with")
    sent = {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        # Without a proxy: the key is for this server alone.
        answer = httpx.request(
            method, f"{url.rstrip('/')}{path}", json=body, headers=sent, timeout=_TIMEOUT_S, trust_env=False
        )
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise ConfigError(f"--url is http://HOST:PORT, got {url!r}") from None
    except httpx.HTTPError as error:
        raise ConfigError(f"no server answers at {url} ({error}); start one with `tta serve`, or name it with --url") from None
    if answer.is_error:
        raise ConfigError(f"{url} refused, status {answer.status_code}: {_message(answer)}")
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"what answers at {url} is not this server")
    return found


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
