"""Free-text orders to compact JSON: who orders what, how many, at which price."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from string import ascii_uppercase

from deploy.demo.tasks import order_parts
from deploy.demo.tasks.order_parts import Customer, Item, Price
from deploy.demo.tasks.task import Example, Split, Task, capitalise, fill
from deploy.demo.tasks.wording import read_wording

WORDING = read_wording("orders")

MONTHS = ("January", "March", "April", "May", "June", "August", "October", "November")


def make(rng: random.Random, split: Split) -> Example:
    """Draw an order.

    The answer has customer and item as the text writes them, quantity and unit price as numbers.
    """
    template = _vary_price(rng, _draw_template(rng, split))
    customer, item = order_parts.draw_customer(rng, split), order_parts.draw_item(rng, split)
    amount, price = order_parts.draw_amount(rng), order_parts.draw_price(rng)
    fields = _fields(rng, split, item, amount, price)
    prompt = _name_customer(fill(rng, template, **fields, name="{name}"), customer)
    written = next(
        fields[place] for place in ("Items", "items", "item") if f"{{{place}}}" in template
    )
    case = str if customer.name.startswith(order_parts.ARTICLE) else _draw_case(rng)
    answer = write_order(case(customer.name), case(written), amount, price.value)
    return Example(case(prompt), answer)


def write_order(customer: str, item: str, amount: int, price: str) -> str:
    """Write an order as compact JSON; the price is a number as JSON has it."""
    named = f'{{"customer":{_quote(customer)},"item":{_quote(item)}'
    return f'{named},"qty":{amount},"price":{price}}}'


def _draw_template(rng: random.Random, split: Split) -> str:
    """Draw an order's whole wording: with an instruction or none, and with words around it."""
    if rng.random() < 0.3:
        return rng.choice(WORDING["whole"][split])
    template = rng.choice(WORDING["bodies"][split])
    if rng.random() < 0.12:
        template = f"{rng.choice(WORDING['openers'][split])} {template}"
    if rng.random() < 0.2:
        template = _continue(rng, template, f" {rng.choice(WORDING['closers'][split])}")
    if rng.random() < 0.6:
        before, _, after = rng.choice(WORDING["frames"][split]).partition("{body}")
        template = before + _continue(rng, template, after)
    return template


def _vary_price(rng: random.Random, template: str) -> str:
    """Put the unit before the price in some templates, where that begins a clause."""
    if rng.random() < 0.7:
        return template
    return re.sub(r"(?<=[,;/–-] )\{price\} \{each\}", rng.choice(order_parts.PER_PIECE), template)


def _continue(rng: random.Random, template: str, after: str) -> str:
    """Put more after a template, most often with a full stop between two sentences."""
    ended = template[-1] in ".!?" or not re.match(r" [A-Z]", after)
    return template + ("" if ended or rng.random() < 0.3 else ".") + after


def _fields(
    rng: random.Random, split: Split, item: Item, amount: int, price: Price
) -> dict[str, str]:
    """Draw what fills a template's places, but for the customer's."""
    spelt = rng.random() < 0.4
    qty = order_parts.write_amount(rng, amount, spelt=spelt)
    wrong = order_parts.draw_amount(rng)
    while wrong == amount:
        wrong = order_parts.draw_amount(rng)
    mistaken = order_parts.write_amount(rng, wrong, spelt=spelt)
    article = "an" if item.noun[0] in "aeiou" else "a"
    each = rng.choice(order_parts.EACH).format(one=item.noun).replace("a " + item.noun, "{an}")
    return {
        "items": item.many,
        "Items": capitalise(item.many),
        "item": item.one,
        "one": item.noun,
        "qty": qty,
        "Qty": capitalise(qty),
        "digits": str(amount),
        "wrong": mistaken,
        "Wrong": capitalise(mistaken),
        "price": price.text,
        "plain": price.plain,
        "each": each.format(an=f"{article} {item.noun}"),
        **_distractions(rng, split, price),
    }


def _distractions(rng: random.Random, split: Split, price: Price) -> dict[str, str]:
    """Draw what a text may hold besides an order."""
    old = order_parts.draw_price(rng)
    while old.value == price.value:
        old = order_parts.draw_price(rng)
    hour, minute = rng.randint(7, 20), rng.randrange(0, 60, 5)
    return {
        "old": old.plain,
        "other": order_parts.draw_customer(rng, split).name,
        "place": rng.choice(order_parts.VALUES["places"][split]),
        "ref": rng.choice(ascii_uppercase) + rng.choice("-/#") + str(rng.randint(100, 99999)),
        "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
        "time": f"{hour}:{minute:02}",
        "phone": f"0{rng.randint(100, 999)} {rng.randint(100000, 999999)}",
        "n": str(rng.randint(2, 90)),
    }


def _name_customer(text: str, customer: Customer) -> str:
    """Put the customer into a text; an article or a title that begins a sentence has a capital."""
    before = text.partition("{name}")[0].rstrip()
    lead = capitalise(customer.lead) if before[-1:] in ("", ".", "!", "?") else customer.lead
    return text.replace("{name}", lead + customer.name)


def _draw_case(rng: random.Random) -> Callable[[str], str]:
    """Draw how the whole text is typed: as it is, mostly, or without capitals, or in capitals."""
    lot = rng.random()
    return str.lower if lot < 0.06 else str.upper if lot < 0.09 else str


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


TASK = Task(
    name="orders",
    description=(
        "Turns an order written in plain words into compact JSON: customer, item, quantity, unit"
        " price."
    ),
    make=make,
    vocabulary={**WORDING, **order_parts.LISTS},
)
