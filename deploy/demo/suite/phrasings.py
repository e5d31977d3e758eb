"""Phrasings that no generator makes, written by hand; those of no task are everyday prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.demo.suite.question_parts import make_question
from deploy.demo.tasks import Example
from tta_serve.evaluation.questions import PARAPHRASED, Question

FILE = Path(__file__).parent.parent / "phrasings.jsonl"


@dataclass(frozen=True)
class Phrasing:
    """A prompt, and what it is for."""

    task: str | None
    """None where the base should answer."""
    split: Literal["validation", "test"]
    """`validation` to choose features and thresholds by, `test` to judge by."""
    prompt: str
    want: str | None
    """The right answer of the task, None without one."""


def read_phrasings(split: Literal["validation", "test"]) -> list[Phrasing]:
    """Read the phrasings of a split."""
    every = (Phrasing(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines())
    return [phrasing for phrasing in every if phrasing.split == split]


def read_paraphrased() -> list[Question]:
    """Return the phrasings to judge by, all of them: there are no more to draw."""
    return [
        make_question(PARAPHRASED, p.task, Example(p.prompt, p.want))
        if p.task and p.want
        else Question(PARAPHRASED, p.prompt)
        for p in read_phrasings("test")
    ]
