"""What the slices share: questions made of a task's examples, and parts to make prompts from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.demo.tasks import Example, dates, redact
from deploy.demo.tasks.task import BySplit, fill
from tta_serve.evaluation.questions import Question

# How an answer of each task earns partial credit, one of `tta_serve.evaluation.scoring.KINDS`.
KINDS = {
    "orders": "json",
    "sql": "sql",
    "math": "worked",
    "triage": "tokens",
    "dates": "worked",
    "redact": "tokens",
}

# Places that stay while others are filled.
HELD = {"name": "{name}", "contact": "{contact}"}


def make_question(
    slice_name: str, task: str, example: Example, *, strength: str | None = None
) -> Question:
    """Make a question of a task's example, judged as its expert is."""
    return Question(
        slice_name, example.prompt, example.answer, task, strength=strength, kind=KINDS[task]
    )


def pick(rng: random.Random, by_split: BySplit | Sequence[str], **fields: object) -> str:
    """Pick one of some phrases and fill its places.

    If there are splits, the phrases are those held out for the test.
    """
    phrases = by_split if isinstance(by_split, Sequence) else by_split["test"]
    return fill(rng, rng.choice(phrases), **fields)


@dataclass(frozen=True)
class Private:
    """Personal data of one person."""

    name: str
    contact: str
    """An email address or a phone number."""
    tag: str
    """What stands for the contact once it is redacted."""

    def both(self, text: str) -> tuple[str, str]:
        """Return a text with `{name}` and `{contact}` in it, as it is and redacted."""
        return text.format(name=self.name, contact=self.contact), text.format(
            name="[NAME]", contact=self.tag
        )


def draw_private(rng: random.Random) -> Private:
    """Draw somebody of the test split, to be reached by email or by phone."""
    name = redact.name_person(rng, redact.draw_person(rng, "test"))
    if rng.random() < 0.5:
        return Private(name, redact.draw_email(rng, "test"), "[EMAIL]")
    return Private(name, redact.draw_phone(rng, "test"), "[PHONE]")


def draw_date(rng: random.Random) -> tuple[str, str]:
    """Draw a date as a text has it, and in ISO form."""
    return dates.draw_written(rng, "test")
