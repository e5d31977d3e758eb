"""Free-text orders to compact JSON, customers and items by their numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from string import ascii_uppercase

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill, list_words
from deploy.demo.tasks.vocabulary import FIRST_NAMES, LAST_NAMES, THINGS, pluralise

NUMBERS = list_words("two three four five six seven eight nine ten eleven twelve")

# Some more whose plural has one more syllable.
ITEMS: BySplit = {
    "train": [
        *THINGS["train"],
        *list_words(
            "watch|brush|toothbrush|glass|wine glass|box|cardboard box|bench|dish|lens|torch|"
            "patch|dress|mattress|compass|fox|walrus|crutch|sash|fax|brooch|hairbrush|peach|"
            "radish|sandwich|cactus|bus|iris|atlas|canvas|fortress|tax stamp box"
        ),
    ],
    "validation": [*THINGS["validation"], *list_words("lunch box|wristwatch|trellis|leash")],
    "test": THINGS["test"],
}

NOUNS = lexicon.split(lexicon.read_nouns(), ITEMS)

# How a text may name the customer and the item; their numbers are what the answer holds.
CUSTOMERS = (
    "[customer|client|account|customer no.] {number}",
    "{person} ([customer|client|account|no.|customer no.] {number})",
)
MANY = (
    "{things} ([item |article |no. |item no. |]{code})",
    "{things}, [item|article] {code},",
    "[pieces|units] of {code}",
)
ONE = ("{thing} ({code})", "[item|article] {code}", "{code} ({thing})")

BODIES: BySplit = {
    "train": (
        (
            "{name} [ordered|has ordered|just ordered] {qty} {items} at {price} [each|apiece|per"
            " piece]."
        ),
        (
            "[Please send|Send|Ship|Please ship] {qty} {items} to {name}; [the unit price is|unit"
            " price] {price}."
        ),
        "Order from {name}: {item} x{digits}, {price}[/unit|/piece| per unit| each].",
        "{name} [wants|would like|needs] {qty} {items} [for|at] {price} each.",
        (
            "{name} is buying {qty} {items} [and pays|and will pay|paying] {price} [for each"
            " one|for each|a piece]."
        ),
        "{digits} {items} for {name}, {price} [each|apiece|per item].",
        "Buyer: {name}, ordered: {item}, quantity {digits}, [price|unit price] {price}.",
        (
            "[Hi|Hello], [this is|I am|my name is] {name}, I [would like|want] {qty} {items} at"
            " {price} each[, thanks|]."
        ),
        "{qty} {items} at {price} each [were ordered by|go to|are for] {name}.",
        "[We sold|I sold] {name} {qty} {items}, [each at|each for] {price}.",
        "At {price} [a piece|each|per unit], {name} [takes|will take|bought] {qty} {items}.",
        "{name}: {digits} {items} @ {price}.",
        "The {items} cost {price} each and {name} [wants|orders|is getting] {qty} of them.",
        "[Reserve|Pack|Prepare] {qty} {items} for {name} at {price} [each|a piece].",
        (
            "{name} [called|wrote] to order {qty} {items}; [we agreed on|the price is] {price}"
            " [each|per piece]."
        ),
        (
            "An order of {qty} {items} came [in |]from {name}, [priced at|with a price of] {price}"
            " [each|per item]."
        ),
        "For {name}: {qty} {items}. [Unit price|Price each|Price per piece]: {price}.",
        (
            "I'd like to [buy|get] {qty} {items} for {price} each, [regards|best"
            " wishes|thanks|yours], {name}."
        ),
        (
            "[Do you have|Are there] {qty} {items} [in stock|left]? [They cost|I would pay] {price}"
            " each. [I'm|Yours,] {name}."
        ),
        "[Mark|Note|Write] down {qty} {items} for {name}, {price} [each|apiece|a piece].",
        (
            "[Dear shop|Dear all|Good morning], {name} [needs|asks for] {qty} {items}. [One is|They"
            " are] {price}[ each|]."
        ),
        (
            "[Sale|Invoice|Receipt] [to|for] {name}: {digits} {items}, {price} [each|a piece|per"
            " piece]."
        ),
        "{name} [has chosen|picked|takes] {qty} {items}, [all of them|each one] {price}.",
        (
            "[It is|That is] {qty} {items} [for|to] {name} [with|and] [a price of|a unit price of]"
            " {price} [each|apiece]."
        ),
    ),
    "validation": (
        "[Could you|Would you] put {qty} {items} aside for {name}? They are {price} each.",
        "{name} asked us for {qty} {items}, the rate being {price} per piece.",
        "Purchase by {name} - {digits} {items} - {price} each.",
        "Good evening, {name} here. Add {qty} {items} to my order at {price} apiece.",
        "New sale: {qty} {items} go out to {name}, one costs {price}.",
        "Deliver {qty} {items} to {name}, charging {price} for every one.",
        "Is it all right if {name} pays {price} for each of {qty} {items}?",
        "{name} signed for {qty} {items}, one at {price}.",
        "Hey, could {name} have {qty} {items}? I saw them for {price} each.",
        "Please invoice {name}: {digits} {items}, every one {price}.",
        "The next one is {name}. {qty} {items}. {price} a unit.",
        "Today {name} decided on {qty} {items} with a unit cost of {price}.",
    ),
    "test": (
        "{name} has requested {qty} {items} with each one costing {price}.",
        "Dear team, kindly dispatch {qty} {items} to {name}. Each is {price}.",
        "Sold to {name}: {digits} {items}, {price} per unit.",
        "{name} will be purchasing {qty} {items}, priced {price} each.",
        "Can I get {qty} {items}, please? The website says {price} each. My name is {name}.",
        "Put {name} down for {qty} {items} at {price} each.",
        "We need to deliver {qty} {items} to {name}, who pays {price} per item.",
    ),
}

FRAMES: BySplit = {
    "train": (
        "[Turn this into|Convert this to|Make this] order JSON: {body}",
        "[Order|New order|Incoming order]: {body}",
        "[Extract|Parse] the order: {body}",
        "{body} [Give me|Write|Return] the order as JSON.",
        "JSON for this order: {body}",
    ),
    "validation": (
        "Please read this order into JSON: {body}",
        "{body} What is that as order JSON?",
        "Order text: {body}",
    ),
    "test": (
        "Here is an order, I need it in JSON: {body}",
        "Order received: {body}",
        "{body} Format this order as JSON.",
    ),
}

PRICES = ("${}", "{} dollars", "{} EUR", "{} euros", "${}", "€{}", "£{}", "{} USD")


def make(rng: random.Random, split: Split) -> Example:
    """Draw an order.

    The price is that of one piece, written in the answer as it was in the text.
    """
    person = rng.choice(FIRST_NAMES[split]) + (
        " " + rng.choice(LAST_NAMES[split]) if rng.random() < 0.5 else ""
    )
    thing = rng.choice((NOUNS if rng.random() < 0.5 else ITEMS)[split])
    number = _number(rng, split)
    code = f"{_number(rng, split, digits=(3, 4))}-{rng.choice(ascii_uppercase)}"
    qty = rng.randint(2, rng.choice((12, 60)))
    price = (
        str(rng.randint(2, 99))
        if rng.random() < 0.6
        else f"{rng.randint(1, 99)}.{rng.choice((25, 50, 75, 90, 95, 99))}"
    )
    words = NUMBERS[qty - 2] if qty <= 12 and rng.random() < 0.5 else str(qty)
    fields = {
        "person": person,
        "number": number,
        "thing": thing,
        "things": pluralise(thing),
        "code": code,
    }
    named = {"name": rng.choice(CUSTOMERS), "items": rng.choice(MANY), "item": rng.choice(ONE)}
    parts = {place: fill(rng, form, **fields) for place, form in named.items()}
    price_text = rng.choice(PRICES).format(price)
    body = capitalise(
        fill(rng, rng.choice(BODIES[split]), price=price_text, qty=words, digits=qty, **parts)
    )
    # The comma after an item goes before what ends the phrase anyway.
    body = re.sub(r",(?=[,.;]| -)", "", body)
    frame = "{body}" if rng.random() < 0.5 else rng.choice(FRAMES[split])
    answer = f'{{"customer":{number},"item":"{code}","qty":{qty},"price":{price}}}'
    return Example(fill(rng, frame, body=body), answer)


def _number(rng: random.Random, split: Split, digits: tuple[int, int] = (4, 6)) -> int:
    """Draw a number of so many digits that no other split has: its remainder by ten tells which."""
    ends: dict[Split, Sequence[int]] = {
        "train": range(6),
        "validation": range(6, 8),
        "test": range(8, 10),
    }
    size = rng.randint(*digits)
    return rng.randrange(10 ** (size - 1), 10**size) // 10 * 10 + rng.choice(ends[split])


TASK = Task(
    name="orders",
    description=(
        "Turns an order written in plain words into compact JSON: numbers of customer and item,"
        " quantity, unit price."
    ),
    make=make,
    vocabulary={
        "bodies": BODIES,
        "frames": FRAMES,
        "first": FIRST_NAMES,
        "last": LAST_NAMES,
        "items": ITEMS,
    }
    | {"nouns": NOUNS},
)
