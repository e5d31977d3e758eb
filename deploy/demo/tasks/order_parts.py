"""What orders are made of: customers, items, quantities and prices, each drawn as it is written.

They are put together from lists, so that there are too many of them to be recalled: they have to be
copied.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import capwords

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.numbers import spell_number
from deploy.demo.tasks.task import BySplit, Split, capitalise, fill, list_words
from deploy.demo.tasks.vocabulary import (
    FIRST_NAMES,
    LAST_NAMES,
    THINGS,
    invent_word,
    join_words,
    pluralise,
)
from deploy.demo.tasks.wording import read_wording

VALUES = read_wording("order_values")
# What nobody buys in pieces.
_ABSTRACT = re.compile(r"(sion|tion|ment|ness|ity|ism|cide|ing|[ea]nce|ship|hood|ure|ude|al|or)$")
LISTS: Mapping[str, BySplit] = {
    "first": FIRST_NAMES,
    "last": LAST_NAMES,
    "things": THINGS,
    "nouns": lexicon.split(
        (noun for noun in lexicon.read_nouns() if not _ABSTRACT.search(noun)), THINGS
    ),
    **{f"more {kind}": VALUES[kind] for kind in VALUES},
}

# Forms are repeated as often as they are likelier than the others.
PERSONS = (
    *["{first} {last}"] * 16,
    "{first} {initial}. {last}",
    "{initial}. {last}",
    "{initial}.{second}. {last}",
    *["{first} {middle} {last}"] * 2,
    "{first}-{middle} {last}",
    *["{first} {last}-{other}"] * 2,
    "{first} {last} {other}",
    *["{first} [de|van|von|del|bin|al|da|van der|Le|ibn|de la|El|dos|ten] {last}"] * 2,
    "{first} [O'|Mc]{last}",
    "{first}",
    "[Pastor|Mrs|Mr|Captain|Sister|Father|Uncle|Madame|Dr|Coach] {first}",
    "[Mrs|Mr|Ms|Dr|Professor|Miss] {last}",
)
TITLED = (
    "{first} {last}",
    "{first} {last}",
    "{first} {middle} {last}",
    "{first} {last}-{other}",
)
TITLES = list_words(
    "Mr Mrs Ms Dr Miss Prof. Mr. Mrs. Ms. Dr. Professor Madame Herr Frau Señora Sir"
)
# Of a name, with its capital; it stays as it is, or nothing would tell it from another article.
ARTICLE = "The "
FIRMS = (
    *["{last} {trade}"] * 5,
    *["{place} {trade}"] * 4,
    *["{adjective} {thing} {trade}"] * 4,
    "{last} [& Sons|and Sons|& Co|& Daughters|Bros|Brothers|& Partners|Ltd|GmbH|Group]",
    "{last} [&|and] {other}",
    "{last}[ & | and |-]{other} {trade}",
    "{last} {trade} [Ltd|LLC|GmbH|AS|Pvt Ltd|Inc|SA|Oy|BV|Srl|KG|AB|PLC|Co]",
    "{joined} {trade}",
    *["{before} {last}"] * 2,
    "{before} {place}",
    "St {first}'s [Primary School|School|Church|Hospice|Academy|Infants|College|Parish]",
    "{place} [School|Primary|High School|College|Academy|Nursery|Library|Elementary School]",
    "{place} [Cricket Club|Rowing Club|FC|Rovers|Choir|Players|Scouts|Chess Club|Athletics|RFC]",
    "{last} [Farm|Estate|Ranch|House|Lodge|Orchard|Vineyard]",
    ARTICLE + "{adjective} {thing}",
    "{first}'s {trade}",
    "{first} & {middle} {trade}",
)
BODIES = (
    "[Municipality|University|Friends|Diocese|Guild|Convent|Sisters|Society|Town] of {place}",
    "[parish|village|town|borough|commune] of {place}",
)
ITEMS = (
    *["{noun}"] * 3,
    *["{adjective} {noun}"] * 3,
    *["{material} {noun}"] * 4,
    *["{kind} {noun}"] * 5,
    *["{adjective} {material} {noun}"] * 2,
    *["{adjective} {kind} {noun}"] * 2,
    "{material} {kind} {noun}",
    "{kind} {sort} {noun}",
    "{place} {kind} {noun}",
    "{joined} {noun}",
)
_PLURALS = {
    "knife": "knives",
    "scarf": "scarves",
    "shelf": "shelves",
    "loaf": "loaves",
    "snowman": "snowmen",
    "mouse": "mice",
}

# What money is written like: where an amount of its size and form is usual.
MONEY = list_words(
    "£{}|${}|€{}|{}€|{} euros|{} euro|{} EUR|{} dollars|{} pounds|{} USD|USD {}|EUR {}|{} bucks|"
    "{} quid|{} francs|CHF {}|{} zloty|{} zł|{} kr|{} kronor|{} crowns|{} rand|R{}|{} GBP|GBP {}|"
    "AU${}|nz${}|NZD {}|CAD {}|{} lira|{} lev|{} dinar|{} dirham|{} soles|{} reais|R${}|{} lei|"
    "{} ringgit|RM{}|S${}|€ {}|£ {}|$ {}|US${}|{} Swiss francs|{} Canadian dollars|{} shekels|"
    "{} manat|{} cedis|£{}|${}|€{}|{} euros|{} dollars|{} pounds|£{}|${}|€{}|{}|{}|{}|{}|{}"
)
DEAR = list_words(
    "¥{}|{} yen|{} won|₩{}|{} naira|₦{}|{} pesos|{} forints|{} Ft|{} rupees|Rs {}|rs {}|₹{}|INR {}|"
    "{} shillings|KSh {}|{} UGX|Rp {}|{} rupiah|{} tomans|{} CFA|{} krónur|{} baht|{} roubles|"
    "{} yuan|{} NOK|{} kroner|{} SEK|{} UAH|HK${}|HKD {}|{} kwacha|{} bob|{} tenge|{} dong|"
    "${}|{}|€{}|£{}|{} dollars|{} euros|{} crowns|US${}"
)
EACH = (
    *["each", "apiece"] * 5,
    "a piece",
    "per piece",
    "per unit",
    "for one",
    "for each",
    "a pop",
    "each one",
    "the piece",
    "per item",
    "for 1",
    "the one",
    "for a single one",
    *["per {one}", "per {one}", "a {one}", "for each {one}", "for one {one}", "the {one}"],
)
# Instead of a price and one of those, where a clause begins.
PER_PIECE = (
    "each {price}",
    "each one {price}",
    "every {one} {price}",
    "per {one} {price}",
    "one {one} {price}",
    "one is {price}",
    "unit price {price}",
    "price {price}",
    "{price}/{one}",
    "{price} ea",
    "{price} single",
)


@dataclass(frozen=True)
class Customer:
    """Somebody who orders."""

    name: str
    """As the answer has it: without a title before the name and its surname, or an article."""
    lead: str = ""
    """What the text has before the name."""


@dataclass(frozen=True)
class Item:
    """Something to be ordered."""

    one: str
    many: str
    noun: str
    """Its last word, in the singular."""


@dataclass(frozen=True)
class Price:
    """A price of one piece."""

    text: str
    """With its currency, if any."""
    plain: str
    """The number as the text has it."""
    value: str
    """The number as the answer has it."""


def _from(rng: random.Random, split: Split, *lists: str) -> str:
    """Draw from one of some lists, from each as often as from the others."""
    return rng.choice(LISTS[rng.choice(lists)][split])


def _names(rng: random.Random, split: Split) -> dict[str, str]:
    """Draw what a name may be made of; in training, some of it is invented."""
    strange = split == "train" and rng.random() < 0.25
    first, middle = (_from(rng, split, "first", "more first", "more first") for _ in range(2))
    last, other = (_from(rng, split, "last", "more last", "more last") for _ in range(2))
    place = _from(rng, split, "more places")
    if strange:
        last, place, first = (
            invent_word(rng).capitalize() if rng.random() < 0.6 else word
            for word in (last, place, first)
        )
    return {
        "first": first,
        "middle": middle,
        "last": last,
        "other": other,
        "place": place,
        "initial": middle[0],
        "second": first[0],
        "trade": _from(rng, split, "more trades"),
        "before": _from(rng, split, "more houses"),
        "adjective": capwords(_from(rng, split, "more qualities")),
        "thing": capwords(_from(rng, split, "things", "nouns")),
        "joined": (join_words(rng) if split == "train" else place).capitalize(),
    }


def draw_customer(rng: random.Random, split: Split) -> Customer:
    """Draw a person, a firm or another body."""
    names, lot = _names(rng, split), rng.random()
    if lot < 0.5:
        return Customer(_recase(rng, fill(rng, rng.choice(PERSONS), **names)))
    if lot < 0.58:
        return Customer(fill(rng, rng.choice(TITLED), **names), f"{rng.choice(TITLES)} ")
    if lot < 0.61:
        return Customer(fill(rng, rng.choice(BODIES), **names), "the ")
    return Customer(_recase(rng, fill(rng, rng.choice(FIRMS), **names)))


def _recase(rng: random.Random, name: str) -> str:
    """Return a name as it is or, now and then, in the case of a hasty or a formal writer."""
    lot = 1.0 if name.startswith(ARTICLE) else rng.random()
    return name.lower() if lot < 0.04 else name.upper() if lot < 0.06 else name


def draw_item(rng: random.Random, split: Split) -> Item:
    """Draw an item of one to four words."""
    noun = _from(rng, split, "things", "more goods", "more goods", "nouns")
    joined = join_words(rng) if split == "train" else _from(rng, split, "more goods")
    before = fill(
        rng,
        rng.choice(ITEMS),
        noun="",
        adjective=_from(rng, split, "more qualities"),
        material=_from(rng, split, "more materials"),
        kind=_from(rng, split, "things", "more goods", "more kinds", "more kinds", "nouns"),
        sort=_from(rng, split, "more kinds"),
        place=_from(rng, split, "more places"),
        joined=joined,
    )
    one, many = (before + form for form in (noun, make_plural(noun)))
    case = capitalise if rng.random() < 0.03 else capwords if rng.random() < 0.02 else str
    return Item(case(one), case(many), noun.split()[-1])


def make_plural(noun: str) -> str:
    """Return the plural of an item's name."""
    for one, many in _PLURALS.items():
        if noun.endswith(one):
            return noun.removesuffix(one) + many
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return pluralise(noun)


def draw_amount(rng: random.Random) -> int:
    """Draw how many are ordered, from two on."""
    return rng.choice(
        (
            rng.randint(2, 12),
            rng.randint(2, 12),
            rng.randint(13, 30),
            rng.randint(13, 99),
            rng.randint(13, 99),
            rng.choice((10, 20, 30, 40, 50, 60, 80, 90)),
            rng.randrange(100, 1000, 10),
            rng.randint(101, 999),
            rng.choice((rng.randrange(100, 900, 100), rng.randrange(1000, 5000, 50))),
        )
    )


def write_amount(rng: random.Random, amount: int, *, spelt: bool) -> str:
    """Write an amount in words, where people do, or in digits."""
    if spelt and amount in (6, 12, 24, 36) and rng.random() < 0.3:
        return {6: "half a", 12: "a", 24: "two", 36: "three"}[amount] + " dozen"
    if spelt and (amount < 100 or (amount % 50 == 0 and amount < 1000)):
        words = spell_number(amount)
        return words.replace("-", " ") if rng.random() < 0.15 else words
    return f"{amount:,}" if amount > 999 and rng.random() < 0.4 else str(amount)


def draw_price(rng: random.Random) -> Price:
    """Draw a price, from cents to hundreds of thousands."""
    lot = rng.random()
    if lot < 0.16:
        number = rng.choice((rng.randrange(100, 5000, 5), rng.randrange(1000, 90000, 50)))
        plain = f"{number:,}" if rng.random() < 0.5 else str(number)
        return _price(rng, plain, DEAR)
    if lot < 0.42:
        return _price(rng, str(rng.randint(2, rng.choice((40, 99, 999)))), MONEY)
    whole = rng.choice((0, rng.randint(1, 20), rng.randint(1, 99), rng.randint(20, 400)))
    cents = rng.choice(
        ("95", "99", "50", "25", "75", "90", f"{rng.randint(1, 99):02}", f"{rng.randint(1, 9)}0")
    )
    if whole and lot < 0.46:
        cents = rng.choice(("00", "5", "00"))
    mark = "," if lot > 0.97 else "."
    return _price(rng, f"{whole}{mark}{cents}", MONEY)


def _price(rng: random.Random, plain: str, notations: Sequence[str]) -> Price:
    """Write a number with a currency; a comma before three digits sets off thousands."""
    whole, mark, rest = plain.partition(",")
    value = plain if not mark else whole + rest if len(rest) == 3 else f"{whole}.{rest}"
    if "." in value:
        value = value.rstrip("0").rstrip(".")
    return Price(rng.choice(notations).format(plain), plain, value)
