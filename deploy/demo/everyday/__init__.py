"""Everyday prompts, written by hand.

They are none of the six tasks, so the right decision is to stay with the base model.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from deploy.demo.tasks.task import Split


def read_everyday(split: Split) -> list[str]:
    """Return the split's prompts.

    Those for training are what the router ships for any library.
    """
    file = (
        files("router") / "everyday.txt"
        if split == "train"
        else Path(__file__).parent / f"{split}.txt"
    )
    return file.read_text(encoding="utf-8").splitlines()
