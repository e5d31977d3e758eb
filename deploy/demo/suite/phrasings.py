"""Phrasings that no generator makes, written by hand; those of no task are everyday prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.demo.suite.core import question
from deploy.demo.tasks import Example
from tta_serve.evaluation.questions import PARAPHRASED, Question

FILE = Path(__file__).parent.parent / "phrasings.jsonl"


@dataclass(frozen=True)
class Phrasing:
    """A prompt, the task that it is for, and its answer; both None where the base should answer.

    split: `validation` to choose features and thresholds by, `test` to judge by
    """

    task: str | None
    split: Literal["validation", "test"]
    prompt: str
    want: str | None


def phrasings(split: Literal["validation", "test"]) -> list[Phrasing]:
    """Those of a split."""
    every = (Phrasing(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines())
    return [phrasing for phrasing in every if phrasing.split == split]


def paraphrased() -> list[Question]:
    """Those to judge by, all of them: there are no more to draw."""
    return [
        question(PARAPHRASED, p.task, Example(p.prompt, p.want)) if p.task and p.want else Question(PARAPHRASED, p.prompt)
        for p in phrasings("test")
    ]
