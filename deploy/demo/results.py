"""The file `experts/results.json`: what every expert's training took and how it scores."""

from __future__ import annotations

import json
import os
from typing import Any

from deploy.demo.model import EXPERTS

RESULTS = EXPERTS / "results.json"


def read_results() -> dict[str, dict[str, Any]]:
    """Return all results so far, by task."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def update_result(task: str, *, afresh: bool = False, **values: Any) -> None:
    """Put these values into the task's entry.

    Args:
        task: Whose entry.
        afresh: Drop what was there, for a new training outdates old scores.
        values: Of the entry, as JSON has them.
    """
    results = read_results()
    results[task] = values if afresh else results.get(task, {}) | values
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n", encoding="utf-8")
    os.replace(part, RESULTS)
