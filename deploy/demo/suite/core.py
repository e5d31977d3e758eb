"""What the slices share: a task's example as a question, and the parts that made prompts are put together from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from deploy.demo.tasks import Example, dates, orders, redact
from deploy.demo.tasks.core import BySplit, fill
from tta_serve.evaluation.questions import Question

# How an answer of each task earns partial credit, one of `tta_serve.evaluation.scoring.KINDS`.
KINDS = {"orders": "json", "sql": "sql", "math": "lines", "triage": "tokens", "dates": "lines", "redact": "tokens"}

# Places that stay while others are filled.
HELD = {"name": "{name}", "contact": "{contact}"}


def question(slice_name: str, task: str, example: Example, *, strength: str | None = None) -> Question:
    """A task's prompt, judged as its expert is."""
    return Question(slice_name, example.prompt, example.answer, task, strength=strength, kind=KINDS[task])


def pick(rng: random.Random, by_split: BySplit | Sequence[str], **fields: object) -> str:
    """One of some phrases, those held out for the test if there are splits, with its places filled."""
    phrases = by_split if isinstance(by_split, Sequence) else by_split["test"]
    return fill(rng, rng.choice(phrases), **fields)


@dataclass(frozen=True)
class Private:
    """Personal data of one person, and what stands in its place once it is redacted."""

    name: str
    contact: str
    tag: str

    def both(self, text: str) -> tuple[str, str]:
        """A text with `{name}` and `{contact}` in it, as it is and redacted."""
        return text.format(name=self.name, contact=self.contact), text.format(name="[NAME]", contact=self.tag)


def private(rng: random.Random) -> Private:
    """Somebody of the test split, to be reached by email or by phone."""
    name, _ = redact._names(rng, "test")
    if rng.random() < 0.5:
        return Private(name, redact._email(rng, "test"), "[EMAIL]")
    return Private(name, redact._phone(rng, "test"), "[PHONE]")


def item_code(rng: random.Random) -> str:
    """The number of an item that no other split has."""
    return f"{orders._number(rng, 'test', digits=(3, 4))}-{rng.choice(ascii_uppercase)}"


def written_date(rng: random.Random) -> tuple[str, str]:
    """A date as a text has it, and in ISO form."""
    day = dates._day(rng, "test")
    return dates._spell(rng, "test", day), day.isoformat()
