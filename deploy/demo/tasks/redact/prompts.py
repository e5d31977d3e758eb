"""A text and what is asked, as people of many manners put them together."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from deploy.demo.tasks.redact.grammar import WORDING, draw, expand
from deploy.demo.tasks.redact.people import find_kind
from deploy.demo.tasks.redact.texts import end_sentence
from deploy.demo.tasks.task import Split, capitalise

_FILLERS = ("um ", "okay so ", "uh, ", "right, ", "oh and ", "hello, ", "please, ")


@dataclass(frozen=True)
class Layout:
    """What is asked, with `{text}` where the text goes, and how its speaker writes."""

    template: str
    lower: bool
    """Everything is in small letters."""

    def adapt(self, rng: random.Random, text: str) -> str:
        """Return the text, its places still open, as this speaker writes it."""
        if self.lower:
            text = text.lower()
        if self.lower and rng.random() < 0.5:
            text = text.replace("'", "")
        if re.search(r"\{text\} \w", self.template):
            return end_sentence(text)
        drops = 0.5 if self.lower else 0.15
        return text.removesuffix(".") if rng.random() < drops else text

    def write(self, rng: random.Random, values: dict[str, str]) -> dict[str, str]:
        """Return personal data as this speaker writes it: some people write no capitals at all."""
        if not self.lower or rng.random() < 0.5:
            return values
        kept = ("passport", "card", "phone")
        return {
            place: value if place.startswith(kept) else value.lower()
            for place, value in values.items()
        }


def draw_layout(rng: random.Random, split: Split, text: str = "") -> Layout:
    """Draw what is asked, and in which manner.

    Now and then that names the kinds of personal data for which the text has places.
    """
    kind = "frame" if rng.random() < 0.6 else "request"
    template = rng.choice(WORDING[kind][split])
    if text and rng.random() < 0.2:
        named = _name_kinds(rng, split, text)
        template = template.replace("{ask}", named).replace("{Ask}", capitalise(named))
    template = expand(rng, split, template)
    lower = rng.random() < 0.15
    if lower or rng.random() < 0.08:
        template = template.lower()
    if lower and rng.random() < 0.5:
        template = template.replace("'", "")
    if rng.random() < 0.05 and template[0].isalpha():
        template = rng.choice(_FILLERS) + template
    if rng.random() < 0.08:
        template = _slip(rng, template)
    return Layout(template, lower)


def _name_kinds(rng: random.Random, split: Split, text: str) -> str:
    """Ask for the kinds of personal data in a text to be hidden, and for nothing else."""
    kinds = dict.fromkeys(find_kind(place) for place in re.findall(r"\{(\w+)\}", text))
    *most, last = [draw(rng, split, f"kind_{kind}") for kind in kinds]
    joined = f"{', '.join(most)} {rng.choice(('and', '+', '&'))} {last}" if most else last
    return draw(rng, split, "named").replace("{kinds}", joined)


def lay_out(template: str, text: str) -> str:
    """Put a text where it goes; one of several lines is on lines of its own."""
    if "\n" in text:
        template = template.replace(" {text}", "\n{text}").replace("{text} ", "{text}\n")
    return template.replace("{text}", text)


def _slip(rng: random.Random, template: str) -> str:
    """Return the template with two letters of a longer word swapped."""
    words = [found for found in re.finditer(r"[a-z]{5,}", template) if found[0] != "text"]
    if not words:
        return template
    at = rng.choice(words).start() + rng.randint(1, 3)
    return template[:at] + template[at + 1] + template[at] + template[at + 2 :]
