"""What the policies of a running server would do with a prompt: `tta router explain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tta_serve.config import ConfigError
from tta_serve.management import call


def ask(url: str, prompt: str, policies: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each policy, as `POST /admin/policies/explain` gives them. policies: none asks all

    Raises ConfigError as `call`.
    """
    body = {"prompt": prompt, **({"policies": list(policies)} if policies else {})}
    found = call(url, "POST", "/admin/policies/explain", body)
    if "policies" not in found:
        raise ConfigError(f"what answers at {url} is not this server")
    rows: list[dict[str, Any]] = found["policies"]
    return rows
