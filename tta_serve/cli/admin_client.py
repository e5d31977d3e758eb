"""The management of a running server, asked as the command line does."""

import json
import os
from collections.abc import Sequence
from typing import Any

import httpx

from tta_serve.exceptions import ConfigError

# The config's name for it, whose import would take torch.
KEY_VARIABLE = "TTA_ADMIN_KEY"
_TIMEOUT_S = 120
_MOST_BYTES = 4 * 1024 * 1024


def call(url: str, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
    """Ask a running server, and return the JSON of its answer, at most 4 MiB.

    Args:
        url: The server's address.
        method: Of HTTP.
        path: What is asked for.
        body: What is sent as JSON, if anything.
        headers: More headers, with `_` for `-`.

    Raises:
        ConfigError: There is no key, no server, or the server refuses.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ConfigError(f"set {KEY_VARIABLE} to the key that the server was started with")
    sent = {
        "Authorization": f"Bearer {key}",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    try:
        # Without a proxy: the key is for this server alone.
        where = f"{url.rstrip('/')}{path}"
        with httpx.stream(
            method, where, json=body, headers=sent, timeout=_TIMEOUT_S, trust_env=False
        ) as answer:
            text = _read(answer)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise ConfigError(f"--url is http://HOST:PORT, got {url!r}") from None
    except httpx.HTTPError as error:
        raise ConfigError(
            f"no server answers at {url} ({error}); start one with `tta serve`, or name it with"
            " --url"
        ) from None
    if answer.is_error:
        raise ConfigError(f"{url} refused, status {answer.status_code}: {_message(text)}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"what answers at {url} is not this server")
    return found


def explain(url: str, prompt: str, policies: Sequence[str]) -> dict[str, Any]:
    """Ask what policies would do with a prompt.

    Args:
        url: The server's address.
        prompt: What a user might ask.
        policies: The policies' names; all if there are none.

    Returns:
        A row for each policy in `policies`, and what is known of each expert in `examples`, as
        `POST /admin/policies/explain` gives them.

    Raises:
        ConfigError: There is no key, no server, or the server refuses.
    """
    body = {"prompt": prompt, **({"policies": list(policies)} if policies else {})}
    found = call(url, "POST", "/admin/policies/explain", body)
    if "policies" not in found:
        raise ConfigError(f"what answers at {url} is not this server")
    return found


def _read(answer: httpx.Response) -> bytes:
    text = b""
    for part in answer.iter_bytes():
        text += part
        if len(text) > _MOST_BYTES:
            break
    return text[:_MOST_BYTES]


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode(errors="replace")
