"""Personal data in a text to placeholders, the rest of the text as it was.

grammar   templates, filled from the task's lists of words
people    names, and the other personal data of somebody
texts     texts with places for personal data
prompts   a text and what is asked, as people put them together
"""

from __future__ import annotations

import random

from deploy.demo.tasks.redact.grammar import NOUNS, WORDING
from deploy.demo.tasks.redact.people import (
    FIRST,
    LAST,
    draw_email,
    draw_person,
    draw_phone,
    draw_private_values,
    hide_values,
    name_person,
)
from deploy.demo.tasks.redact.prompts import draw_layout, lay_out
from deploy.demo.tasks.redact.texts import draw_text
from deploy.demo.tasks.task import Example, Split, Task

__all__ = [
    "TASK",
    "ask_to_redact",
    "draw_email",
    "draw_person",
    "draw_phone",
    "name_person",
]


def make(rng: random.Random, split: Split) -> Example:
    """Draw a text once and fill it twice: with personal data, and with the placeholders."""
    text = draw_text(rng, split)
    layout = draw_layout(rng, split, text)
    text = layout.adapt(rng, text)
    values = layout.write(rng, draw_private_values(rng, split))
    return Example(
        lay_out(layout.template, text.format(**values)), text.format(**hide_values(values))
    )


def ask_to_redact(rng: random.Random, split: Split, text: str) -> str:
    """Return a prompt that has this text redacted."""
    return lay_out(draw_layout(rng, split).template, text)


TASK = Task(
    name="redact",
    description=(
        "Replaces names, email addresses, phone and card numbers, passports and postal addresses by"
        " [NAME], [EMAIL], [PHONE], [CARD], [PASSPORT] and [ADDRESS], the rest stays."
    ),
    make=make,
    vocabulary={**WORDING, "first": FIRST, "last": LAST, "nouns": NOUNS},
)
