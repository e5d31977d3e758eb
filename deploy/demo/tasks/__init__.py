"""The six tasks of the demo library."""

from __future__ import annotations

from deploy.demo.tasks import arithmetic, dates, orders, redact, sql, triage
from deploy.demo.tasks.core import SPLITS, Example, Split, Task

TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in (orders, sql, arithmetic, triage, dates, redact)}

__all__ = ["SPLITS", "TASKS", "Example", "Split", "Task"]
