"""Templates that name lists of words, filled until only places for personal data are left.

`[one|or another]` is a choice and `{list}` one of the templates of that list in
`wording/redact.toml`, with a capital if the list is written with one. `{noun}`, `{n}` and the other
`DRAWERS` are drawn anew at each place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.task import BySplit, Split, capitalise
from deploy.demo.tasks.vocabulary import THINGS, invent_word, pluralise
from deploy.demo.tasks.wording import read_wording

WORDING = read_wording("redact")

_SPLIT_NOUNS = lexicon.split(lexicon.read_nouns(), THINGS)
NOUNS: BySplit = {
    "train": [*THINGS["train"], *_SPLIT_NOUNS["train"]],
    "validation": [*THINGS["validation"], *_SPLIT_NOUNS["validation"]],
    "test": THINGS["test"],
}

# Places that personal data or the text go to, though there are lists of these names as well.
HELD = frozenset({"first", "last", "phone", "card", "passport", "address", "text"})

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_PLACE = re.compile(r"\{(\w+)\}")


def _noun(rng: random.Random, split: Split) -> str:
    return rng.choice(NOUNS[split])


def _house(rng: random.Random, split: Split) -> str:
    letter = rng.choice("abcd") if rng.random() < 0.1 else ""
    return f"{rng.randint(1, 250)}{letter}"


def _between(least: int, most: int) -> Callable[[random.Random, Split], str]:
    return lambda rng, split: str(rng.randint(least, most))


DRAWERS: Mapping[str, Callable[[random.Random, Split], str]] = {
    "noun": _noun,
    "nouns": lambda rng, split: pluralise(_noun(rng, split)),
    "word": lambda rng, split: invent_word(rng),
    "letter": lambda rng, split: rng.choice(ascii_uppercase),
    "house": _house,
    "hour": _between(1, 12),
    "minute": lambda rng, split: f"{rng.randint(0, 59):02}",
    "n": lambda rng, split: str(rng.randint(2, rng.choice((12, 60)))),
    "n12": _between(1, 12),
    "n30": _between(1, 30),
    "n90": _between(10, 90),
    "m2": lambda rng, split: f"{rng.randint(1, 12):02}",
    "d2nd": lambda rng, split: f"{rng.randint(1, 28):02}",
    **{f"d{length}": _between(10 ** (length - 1), 10**length - 1) for length in (1, 2, 3, 4, 5, 6)},
}


def expand(rng: random.Random, split: Split, template: str) -> str:
    """Resolve all choices and lists of a template; places for personal data stay."""

    def drawn(place: re.Match[str]) -> str:
        key = place[1]
        lower = key.lower()
        if key in DRAWERS:
            return DRAWERS[key](rng, split)
        if lower in DRAWERS:
            return DRAWERS[lower](rng, split).title()
        if key in WORDING:
            return rng.choice(WORDING[key][split])
        return capitalise(expand(rng, split, rng.choice(WORDING[lower][split])))

    while True:
        before = template
        while "[" in template:
            template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
        template = _PLACE.sub(lambda place: place[0] if _held(place[1]) else drawn(place), template)
        if template == before:
            return template


def draw(rng: random.Random, split: Split, list_name: str) -> str:
    """Draw from one of the lists."""
    return expand(rng, split, f"{{{list_name}}}")


def _held(place: str) -> bool:
    """Say whether a place is for personal data or for a text: not to be filled here."""
    return place.lower() not in DRAWERS and (place in HELD or place.lower() not in WORDING)
