"""Everyday prompts, written by hand: none of the six tasks, so the right decision is to stay with the base model."""

from __future__ import annotations

from pathlib import Path

from deploy.demo.tasks.core import Split


def everyday(split: Split) -> list[str]:
    """The split's prompts."""
    return (Path(__file__).parent / f"{split}.txt").read_text().splitlines()
