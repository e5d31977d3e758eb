"""What a task is: a named generator of prompts and answers.

Validation and test have words of their own, which training never shows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
BySplit = Mapping[Split, Sequence[str]]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Example:
    """One prompt as a user would type it, and the only right answer."""

    prompt: str
    answer: str

    @property
    def line(self) -> str:
        """The prompt in one line, as files of prompts have it."""
        return " ".join(self.prompt.split())


@dataclass(frozen=True)
class Task:
    """A task of the demo library."""

    name: str
    description: str
    make: Callable[[random.Random, Split], Example]
    """Draws one example of a split."""
    vocabulary: Mapping[str, BySplit]
    """Every list of words or templates that differs by split."""
    result: Callable[[str], str] = str.strip
    """Returns what an answer comes to, which is what has to be right: not how it was worked out."""

    def is_right(self, answer: str, want: str) -> bool:
        """Return whether an answer comes to what the wanted one does."""
        return self.result(answer) == self.result(want)

    def example(self, rng: random.Random, split: Split) -> Example:
        """Draw one example."""
        return self.make(rng, split)

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        """Draw `n` examples with different prompts; the same arguments give the same list."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        found: dict[str, Example] = {}
        while len(found) < n:
            example = self.make(rng, split)
            found.setdefault(example.prompt, example)
        return list(found.values())


def fill(rng: random.Random, template: str, **fields: object) -> str:
    """Resolve every `[one|or another]` at random, then put the fields into their `{places}`.

    The innermost choices are resolved first.
    """
    while "[" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return template.format(**fields)


def capitalise(text: str) -> str:
    """Return the text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def list_words(text: str) -> list[str]:
    """Return the words of a text, or its parts between bars if it has any."""
    return text.split("|" if "|" in text else None)
