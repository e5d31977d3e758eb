"""An experiment that a benchmark starts on our server."""

from collections.abc import Mapping
from typing import Any

import httpx


def start_experiment(admin: httpx.Client, name: str, definition: Mapping[str, Any]) -> None:
    """Define an experiment that is not there yet, and start it.

    Args:
        admin: A client of the server's management.
        name: What it is called.
        definition: Its arms and metrics, as the API takes them.
    """
    path = f"/admin/experiments/{name}"
    made = admin.put(path, json=definition, headers={"if-none-match": "*"})
    seen = {"if-match": made.raise_for_status().headers["etag"]}
    admin.post(f"{path}/start", headers=seen).raise_for_status()
