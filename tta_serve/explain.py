"""What the policies of a running server would do with a prompt: `tta router explain`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from tta_serve.config import KEY_VARIABLE, ConfigError

_TIMEOUT_S = 120
_MOST_BYTES = 4 * 1024 * 1024


def ask(url: str, prompt: str, policies: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each policy, as `POST /admin/policies/explain` gives them. policies: none asks all

    Raises ConfigError if there is no key, no server, or the server refuses.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ConfigError(f"set {KEY_VARIABLE} to the key that the server was started with")
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"--url is http://HOST:PORT, got {url!r}")
    body = {"prompt": prompt, **({"policies": list(policies)} if policies else {})}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(f"{url.rstrip('/')}/admin/policies/explain", json.dumps(body).encode(), headers)
    try:
        # Without a proxy: the key is for this server alone.
        with build_opener(ProxyHandler({})).open(request, timeout=_TIMEOUT_S) as answer:
            rows: list[dict[str, Any]] = json.loads(answer.read(_MOST_BYTES))["policies"]
    except HTTPError as error:
        raise ConfigError(f"{url} refused, status {error.code}: {_message(error.read(_MOST_BYTES))}") from None
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"no server answers at {url} ({reason}); start one with `tta serve`, or name it with --url"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"what answers at {url} is not this server") from None
    return rows


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
