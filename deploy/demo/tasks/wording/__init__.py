"""How people word what they ask: templates by task, in files of TOML.

A file has one table for each kind of prompt of its task, and in it the templates of each split.
Templates are as `deploy.demo.tasks.task.fill` reads them: `[one|or another]` is a choice, `{place}`
is filled. They were written in the voices of many made-up people; those of two splits are of
different people.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from deploy.demo.tasks.task import SPLITS, BySplit

_HERE = Path(__file__).parent


def read_wording(task: str) -> Mapping[str, BySplit]:
    """Read the templates of a task, by kind of prompt and split."""
    tables = tomllib.loads((_HERE / f"{task}.toml").read_text(encoding="utf-8"))
    return {
        kind: {split: tuple(table[split]) for split in SPLITS} for kind, table in tables.items()
    }
