"""Arithmetic word problems to steps that are worked out, and the answer.

Finding the operation is the task; the steps are small enough for a model that reads digit by digit.

Places of the templates: `{a}` and `{b}` are the operands, in digits or in words; `{A}` and `{B}`
the same at the start of a sentence, `{x}` and `{y}` in digits. For - and /, `{a}` is the larger.
`{e}` and `{f}` are numbers that do not matter.
`{got}`, `{lost}`, `{made}`, `{came}` and `{gone}` are verbs, the last two without an object.
"""

from __future__ import annotations

import random
import re

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.numbers import NUMBER_WORDS, spell_number
from deploy.demo.tasks.steps import SIGNS, work_out
from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill
from deploy.demo.tasks.task import list_words as words
from deploy.demo.tasks.vocabulary import (
    FIRST_NAMES,
    LAST_NAMES,
    THINGS,
    invent_word,
    pluralise,
)
from deploy.demo.tasks.wording import read_wording
from tta_serve.evaluation.scoring import last_line

WORDING = read_wording("math")
VERBS = ("got", "lost", "made", "came", "gone")
NOUNS = lexicon.split(lexicon.read_nouns(), THINGS)
PLACES: BySplit = {
    "train": words(
        "Oslo|Kampala|Porto|Leeds|Ohio|Lima|Gdansk|Jaipur|Busan|Tunis|Galway|Quebec|Hanoi|Perth|"
        "Tirana|Accra|Utrecht|Bergen|Cusco|Zagreb|Split|Malaga|Kyoto|Haifa|Dakar|Minsk|Cork|"
        "New Orleans|Cape Town|Santa Fe|Buenos Aires|Kuala Lumpur|Little Marlow|Bad Ems|El Paso|"
        "Upper Hutt|Novi Sad|Saint Ives|Hill End|Nizwa|Gyumri|Bariloche|Trondheim|Guayaquil"
    ),
    "validation": words("Turin Halifax Osaka Ghent Lublin Cairo"),
    "test": words("Bristol Nagoya Lyon Windhoek Tampere Recife Wells"),
}
PERSONS: BySplit = {
    "train": words(
        "teacher|boss|neighbour|cousin|captain|doctor|baker|farmer|plumber|coach|nurse|librarian|"
        "gardener|painter|sailor|student|scout|pupil|guest|driver|singer|dancer|tourist|kid|"
        "friend|worker|soldier|player|visitor|hiker|diver|pilot|barber|juggler|miner|pirate"
    ),
    "validation": words("monk|cashier|camper|drummer|beekeeper"),
    "test": words("weaver|porter|lodger|actor|skater|pilgrim"),
}
BOXES: BySplit = {
    "train": words(
        "box|crate|bag|basket|tin|jar|carton|sack|drawer|chest|packet|tub|barrel|trunk|tray|"
        "case|bin|pouch|hamper|parcel|rack|bowl|container|envelope|bucket"
    ),
    "validation": words("casket|suitcase|locker|canister"),
    "test": words("cabinet|satchel|cask|punnet|folder"),
}
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONEY = words(
    "dollars euros pounds zloty rupees francs pesos yen crowns lira dinars rand shillings kroner"
    " reais pence cents bucks roubles baht won dirhams forints lei"
)
LENGTHS = words("metres meters kilometres km miles feet inches centimetres cm yards m")
WEIGHTS = words("kilos kg pounds grams ounces tonnes stone lb")
VOLUMES = words("litres liters gallons pints cups ml quarts barrels")

# One factor of a product that is not in the small table, by how often it comes.
_SMALL_FACTORS = (2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 8, 8, 9)


def draw_operands(rng: random.Random, sign: str) -> tuple[int, int, int]:
    """Draw two operands and their result.

    Nearly all numbers are below a hundred, and none is above 150.
    """
    if sign in "+-":
        whole = max(rng.randint(8, 99), rng.randint(8, 99))
        if rng.random() < 0.07:
            whole = rng.randint(100, 150)
        part = rng.randint(max(2, whole - 99), min(99, whole - 2))
        return (part, whole - part, whole) if sign == "+" else (whole, part, whole - part)
    small, large = rng.randint(2, 10), rng.randint(2, 10)
    if rng.random() < 0.65:
        small = rng.choice(_SMALL_FACTORS)
        large = rng.randint(11, (150 if rng.random() < 0.07 else 99) // small)
    one, other = (small, large) if rng.random() < 0.6 else (large, small)
    return (one, other, one * other) if sign == "*" else (one * other, one, other)


def _say(rng: random.Random, number: int, *, spelt: bool) -> str:
    if not spelt or number > 99:
        return str(number)
    if number == 12 and rng.random() < 0.2:
        return "a dozen"
    return spell_number(number) if rng.random() < 0.8 else spell_number(number).replace("-", " ")


def _tell(rng: random.Random, number: int, split: Split, *, spelt: bool) -> str:
    """Say a number, now and then after a slip of the tongue."""
    told = _say(rng, number, spelt=spelt)
    if rng.random() < 0.97:
        return told
    slip = number + rng.choice([n for n in (-10, -2, -1, 1, 2, 10) if number + n > 1])
    correction = rng.choice(WORDING["corrections"][split])
    between = "" if correction.startswith(",") else " "
    return f"{_say(rng, slip, spelt=spelt)}{between}{correction} {told}"


def _numbers(rng: random.Random, a: int, b: int, split: Split) -> dict[str, str]:
    """Say the operands, and two numbers that are neither."""
    in_words = rng.random() < 0.3
    told = {
        place: _tell(rng, number, split, spelt=in_words and rng.random() < 0.6)
        for place, number in (("a", a), ("b", b))
    }
    capitals = {place.upper(): capitalise(number) for place, number in told.items()}
    others = rng.sample([n for n in range(3, 99) if n not in (a, b)], 2)
    return told | capitals | {"x": str(a), "y": str(b), "e": str(others[0]), "f": str(others[1])}


def _name(rng: random.Random, split: Split) -> str:
    lot = rng.random()
    first = rng.choice(FIRST_NAMES[split])
    if lot < 0.2 and split == "train":
        return capitalise(invent_word(rng))
    return f"{first} {rng.choice(LAST_NAMES[split])}" if lot < 0.35 else first


def _item(rng: random.Random, split: Split) -> str:
    if rng.random() < 0.1 and split == "train":
        return invent_word(rng)
    return rng.choice((NOUNS if rng.random() < 0.4 else THINGS)[split])


def _world(rng: random.Random, split: Split) -> dict[str, str]:
    """Draw who and what a story is about."""
    item, box = _item(rng, split), rng.choice(BOXES[split])
    person = rng.choice(PERSONS[split])
    invented = split == "train" and rng.random() < 0.3
    day, other_day = rng.sample(DAYS, 2)
    verbs = {verb: rng.choice(WORDING[verb][split]) for verb in VERBS}
    more = {f"{verb}2": rng.choice(WORDING[verb][split]) for verb in VERBS}
    return (
        verbs
        | more
        | {
            "name": _name(rng, split),
            "other": _name(rng, split),
            "item": item,
            "items": pluralise(item),
            "box": box,
            "boxes": pluralise(box),
            "person": person,
            "people": pluralise(person),
            "place": capitalise(invent_word(rng)) if invented else rng.choice(PLACES[split]),
            "day": day,
            "next": other_day,
            "cash": rng.choice(MONEY),
            "long": rng.choice(LENGTHS),
            "heavy": rng.choice(WEIGHTS),
            "wet": rng.choice(VOLUMES),
        }
    )


def _frame(rng: random.Random, template: str, split: Split) -> str:
    """Return a template as it is, or with something said before or after it."""
    before = rng.choice(WORDING["before"][split]) if rng.random() < 0.3 else ""
    after = rng.choice(WORDING["after"][split]) if rng.random() < 0.2 else ""
    return f"{before} {template} {after}".strip()


def _mistype(rng: random.Random, prompt: str) -> str:
    """Return the prompt with two letters swapped, or one missing, in some of its longer words."""
    words = prompt.split(" ")
    for at, word in enumerate(words):
        if rng.random() < 0.2 and re.fullmatch("[a-z]{5,}", word) and word not in NUMBER_WORDS:
            cut = rng.randint(1, len(word) - 3)
            first, second = word[cut], word[cut + 1]
            words[at] = word[:cut] + rng.choice((second + first, second)) + word[cut + 2 :]
    return " ".join(words)


def _scribble(rng: random.Random, prompt: str) -> str:
    """Return a prompt as careless people would type it, some of the time."""
    lot = rng.random()
    if lot < 0.08:
        return prompt.lower()
    if lot < 0.12:
        return prompt.lower().rstrip(".?!")
    if lot < 0.19:
        return _mistype(rng, prompt)
    return prompt.upper() if lot < 0.2 else prompt


def make(rng: random.Random, split: Split) -> Example:
    """Draw an operation, one of its stories and the numbers.

    Sums and products are written in the order of the text.
    """
    sign = rng.choice(list(SIGNS))
    template = rng.choice(WORDING[sign][split])
    a, b, _ = draw_operands(rng, sign)
    fields = _world(rng, split) | _numbers(rng, a, b, split)
    prompt = fill(rng, _frame(rng, template, split), **fields)
    places = re.findall(r"\{([abxy])\}", template.lower())
    if sign in "+*" and places[0] in "by":
        a, b = b, a
    return Example(_scribble(rng, prompt), work_out(a, sign, b))


TASK = Task(
    name="math",
    description="Solves an arithmetic word problem: steps that are worked out, then the answer.",
    make=make,
    vocabulary={
        "first": FIRST_NAMES,
        "last": LAST_NAMES,
        "things": THINGS,
        "nouns": NOUNS,
        "places": PLACES,
        "persons": PERSONS,
        "boxes": BOXES,
    }
    | {f"wording {kind}": by for kind, by in WORDING.items()},
    result=last_line,
)
