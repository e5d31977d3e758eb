"""Somebody's name and other personal data, and the placeholders for them."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase

from deploy.demo.tasks.redact.grammar import WORDING, draw, expand
from deploy.demo.tasks.task import SPLITS, BySplit, Split
from deploy.demo.tasks.vocabulary import FIRST_NAMES, LAST_NAMES, invent_word

FIRST: BySplit = {split: (*FIRST_NAMES[split], *WORDING["first"][split]) for split in SPLITS}
LAST: BySplit = {split: (*LAST_NAMES[split], *WORDING["last"][split]) for split in SPLITS}

# What a decomposition of letters into letter and accent leaves as it is.
_FOLDED = str.maketrans({"ł": "l", "ø": "o", "ß": "ss", "ı": "i", "đ": "d", "æ": "ae"})


@dataclass(frozen=True)
class Person:
    """First and last name of somebody."""

    first: str
    last: str


def draw_person(rng: random.Random, split: Split) -> Person:
    """Draw somebody; in training also some with a name that nobody has."""
    first, last = rng.choice(FIRST[split]), rng.choice(LAST[split])
    if split == "train" and rng.random() < 0.25:
        first = invent_word(rng).title()
    if split == "train" and rng.random() < 0.4:
        last = draw(rng, split, "surname")
    return Person(first, last)


def name_person(rng: random.Random, person: Person) -> str:
    """Return the name as a text may have it, most often first and last name."""
    form = rng.choices(
        (
            f"{person.first} {person.last}",
            person.first,
            f"{person.first} {rng.choice(ascii_uppercase)}. {person.last}",
            f"{person.first[0]}. {person.last}",
            f"{person.first} {person.last[0]}.",
        ),
        (80, 12, 3, 3, 2),
    )
    # A name that ends in a period would make a sentence's own end unclear.
    return form[0].removesuffix(".")


def _number(rng: random.Random, split: Split, list_name: str) -> str:
    """Draw a number by one of the patterns of a list."""
    signs = {"#": "0123456789", "%": "123456789", "?": ascii_uppercase}
    pattern = rng.choice(WORDING[list_name][split])
    return "".join(rng.choice(signs.get(sign, sign)) for sign in pattern)


def draw_phone(rng: random.Random, split: Split) -> str:
    """Draw a phone number in one of many countries' notations."""
    return _number(rng, split, "phone")


def draw_card(rng: random.Random, split: Split) -> str:
    """Draw the number of a payment card."""
    return _number(rng, split, "card")


def draw_passport(rng: random.Random, split: Split) -> str:
    """Draw the number of a passport."""
    return _number(rng, split, "passport")


def draw_address(rng: random.Random, split: Split) -> str:
    """Draw a postal address in one line."""
    return expand(rng, split, rng.choice(WORDING["address"][split]))


def draw_email(rng: random.Random, split: Split, owner: Person | None = None) -> str:
    """Draw an email address, its owner's if there is one or anybody's."""
    owner = owner or draw_person(rng, split)
    first, last = _fold(owner.first), _fold(owner.last)
    parts = {"<first>": first, "<last>": last, "<initial>": first[0], "<i>": last[0]}
    box = draw(rng, split, "mailbox")
    for place, part in parts.items():
        box = box.replace(place, part)
    return f"{box}@{draw(rng, split, 'domain')}".replace(" ", "")


def _fold(name: str) -> str:
    """Return a name in the letters of an email address."""
    letters = unicodedata.normalize("NFKD", name.lower().translate(_FOLDED))
    return re.sub("[^a-z]", "", letters)


def draw_private_values(rng: random.Random, split: Split) -> dict[str, str]:
    """Draw what goes into the places for personal data of a text."""
    people: dict[str, Person] = {}
    while len(people) < 3:
        person = draw_person(rng, split)
        people[person.first] = person
    values = {}
    named = zip(("", "2", "3"), ("name", "other", "third"), people.values(), strict=True)
    for number, place, person in named:
        values[place] = values[f"name{number}"] = name_person(rng, person)
        values |= {f"first{number}": person.first, f"last{number}": person.last}
        owner = person if rng.random() < 0.6 else None
        values |= {
            f"email{number}": draw_email(rng, split, owner),
            f"phone{number}": draw_phone(rng, split),
            f"card{number}": draw_card(rng, split),
            f"passport{number}": draw_passport(rng, split),
            f"address{number}": draw_address(rng, split),
        }
    return values


def find_kind(place: str) -> str:
    """Return of what kind of personal data a place is."""
    kind = place.rstrip("23")
    return "name" if kind in ("first", "last", "other", "third") else kind


def hide_values(values: Mapping[str, str]) -> dict[str, str]:
    """Return the placeholders of the same places."""
    return {place: f"[{find_kind(place).upper()}]" for place in values}
