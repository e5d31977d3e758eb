"""Requests that need two experts at once. None of the demo's experts was trained on any."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

from deploy.demo.suite.question_parts import (
    HELD,
    Private,
    draw_date,
    draw_private,
    pick,
)
from deploy.demo.tasks import arithmetic, dates, order_parts, orders, sql, triage
from deploy.demo.tasks.shifts import WEEKDAYS
from deploy.demo.tasks.sql.tables import Column
from deploy.demo.tasks.task import capitalise
from deploy.demo.tasks.vocabulary import THINGS
from tta_serve.evaluation.questions import TWO_SKILLS, Question

REDACT_AND_TRIAGE = (
    "Hide who wrote this ticket and say which category and priority it has: {ticket}",
    "Can you redact this ticket and then sort it by category and priority? {ticket}",
    "Personal data has to go, and I need the category and the priority: {ticket}",
    "{ticket} Strip names and contact data from this ticket and triage it.",
)
TICKETS = (
    "{name} here. {issue}. {cue} Reply to {contact}.",
    "{issue}. {cue} My name is {name}, you reach me at {contact}.",
    "I am {name} ({contact}). {issue}. {cue}",
)

# a, b: the operands, in the order of the text
ORDERED = {
    "*": (
        "{who} takes {a} boxes of {b} {things} each, {price} per {thing}.",
        (
            "{who} will be purchasing {a} packets with {b} {things} in each, every {thing}"
            " at {price}."
        ),
    ),
    "+": (
        "{who} has requested {a} {things} at {price} each, and now {b} more of them.",
        "Put {who} down for {a} {things} at {price} each. Later {b} more were added.",
    ),
    "-": (
        "{who} has requested {a} {things} at {price} each, but {b} of them were given back.",
        "Put {who} down for {a} {things} at {price} each. Then {b} of them were cancelled.",
    ),
}
PRICES = ("${}", "€{}", "£{}", "{} dollars", "{} euros", "{} EUR", "{} USD")
ORDER_FRAMES = (
    "How many does the customer get in the end? Answer as order JSON: {body}",
    "Here is an order, work out the quantity and format it as JSON: {body}",
    "{body} How many is that in total? I need it as order JSON.",
)

TODAY = (
    "The current date is {weekday}, {date}.",
    "Now it is {weekday}, {date}.",
    "Assume that today is {weekday}, {date}.",
)
DATE_COLUMNS = ("arrival", "inspection", "opening", "anniversary")
# Question, what is selected, and the sign of the condition.
DATED = (
    (
        "Tell me the {t} whose {d} is {date} in ISO format",
        "SELECT {t} FROM {table}",
        "WHERE {d} =",
    ),
    (
        "I ask for which {t} the {d}, an ISO date, is later than {date}",
        "SELECT {t} FROM {table}",
        "WHERE {d} >",
    ),
    (
        "Tell me how many {things} have the {d} {date}, put as an ISO date",
        "SELECT COUNT(*) FROM {table}",
        "WHERE {d} =",
    ),
)

REDACT_AND_DATE = (
    "Redact this text and write its date in ISO format: {text}",
    "Hide who is who in the following text, and express the date in the ISO standard: {text}",
    "Personal data has to go and the date should be YYYY-MM-DD: {text}",
)
DATED_TEXTS = (
    "On {date} {name} returned the {thing}, questions go to {contact}.",
    "{name} ({contact}) asked for the {thing} on {date}.",
    "Someone saw {name} with a {thing} on {date}, please tell {contact}.",
    "{contact} is where {name} could be reached on {date}.",
)

TRIAGE_AND_DATE = (
    "Sort this ticket, with its date in ISO format: {ticket}",
    "I need the category, the priority and the date as YYYY-MM-DD: {ticket}",
    "{ticket} Give the category, the priority and the ISO version of the date.",
)
DATED_TICKETS = (
    "{issue}. I first wrote to you on {date}. {cue}",
    "{issue}. {cue} This is my message of {date}.",
    "Customer message of {date}: {issue}. {cue}",
)


def draw_two_skills(n: int, seed: int) -> list[Question]:
    """Draw `n` requests for each pair of tasks.

    The parts of an answer count alike, and none of them is in its prompt.
    """
    return [question for tasks, make in MAKERS.items() for question in _drawn(tasks, make, n, seed)]


def _drawn(
    tasks: str, make: Callable[[random.Random], tuple[str, str, tuple[str, ...]]], n: int, seed: int
) -> list[Question]:
    rng = random.Random(f"{tasks}/{seed}")
    found: dict[str, Question] = {}
    while len(found) < n:
        prompt, want, parts = make(rng)
        prompt = " ".join(prompt.split())
        found.setdefault(prompt, Question(TWO_SKILLS, prompt, want, tasks, parts, kind="parts"))
    return list(found.values())


def _issue(rng: random.Random) -> tuple[dict[str, str], tuple[str, str]]:
    """Draw what a ticket is about and how urgent it is.

    Returns:
        Both in words, and category and priority as the answer has them.
    """
    category = rng.choice(list(triage.ISSUES))
    priority = rng.choice(list(triage.CUES))
    text = {
        "issue": capitalise(pick(rng, triage.ISSUES[category])),
        "cue": pick(rng, triage.CUES[priority]),
    }
    return text, (f"category={category}", f"priority={priority}")


def _private(rng: random.Random, form: str, **fields: str) -> tuple[Private, str, str]:
    """Draw somebody, and return a text about them as it is and redacted."""
    person = draw_private(rng)
    text, clean = person.both(form.format(**HELD, **fields))
    return person, text, " ".join(clean.split())


def _redact_triage(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    fields, sorted_as = _issue(rng)
    person, ticket, clean = _private(rng, rng.choice(TICKETS), **fields)
    want = f"{clean}\n{'; '.join(sorted_as)}"
    return pick(rng, REDACT_AND_TRIAGE, ticket=ticket), want, ("[NAME]", person.tag, *sorted_as)


def _math_orders(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    sign = rng.choice(list(ORDERED))
    a, b, result = arithmetic.draw_operands(rng, sign)
    while result in (a, b):
        a, b, result = arithmetic.draw_operands(rng, sign)
    who = order_parts.draw_customer(rng, "test").name
    item, price = order_parts.draw_item(rng, "test"), rng.randint(2, 99)
    fields = {"who": who, "thing": item.noun, "things": item.many}
    body = pick(rng, ORDERED[sign], a=a, b=b, price=rng.choice(PRICES).format(price), **fields)
    want = orders.write_order(who, item.many, result, str(price))
    return pick(rng, ORDER_FRAMES, body=body), want, tuple(want[1:-1].split(","))


def _dates_sql(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    table = sql.draw_table(rng, "test")
    column = Column(rng.choice(DATE_COLUMNS), "date", ())
    question, select, where = rng.choice(DATED)
    stated, date, iso = _quoted(rng) if rng.random() < 0.7 else _relative(rng)
    fields = {
        "table": table.name,
        "things": table.things,
        "t": rng.choice(table.among("text")).name,
        "d": column.name,
    }
    columns = rng.sample([*table.columns, column], len(table.columns) + 1)
    question = question.format(date=date, **fields)
    asked = pick(
        rng,
        sql.FRAMES,
        table=sql.write_table(rng, "test", replace(table, columns=tuple(columns))),
        ask=question,
        Ask=question,
    )
    parts = (select.format(**fields), where.format(**fields), iso)
    return f"{stated} {asked}", f"{parts[0]} {parts[1]} '{iso}';", parts


def _quoted(rng: random.Random) -> tuple[str, str, str]:
    """No sentence about today, a date in quotes as values are, and the same in ISO form."""
    date, iso = draw_date(rng)
    return "", f"'{date}'", iso


def _relative(rng: random.Random) -> tuple[str, str, str]:
    """Today's date as a sentence, a day near it in words, and that day in ISO form."""
    away = rng.choice(list(dates.FIXED_WORDS))
    text, iso = draw_date(rng)
    today = date.fromisoformat(iso)
    stated = pick(rng, TODAY, weekday=WEEKDAYS[today.weekday()], date=text)
    return stated, dates.FIXED_WORDS[away], (today + timedelta(away)).isoformat()


def _dates_redact(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    date, iso = draw_date(rng)
    person, text, clean = _private(
        rng, rng.choice(DATED_TEXTS), date=date, thing=rng.choice(THINGS["test"])
    )
    return (
        pick(rng, REDACT_AND_DATE, text=text),
        clean.replace(date, iso),
        ("[NAME]", person.tag, iso),
    )


def _dates_triage(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    (date, iso), (fields, sorted_as) = draw_date(rng), _issue(rng)
    ticket = rng.choice(DATED_TICKETS).format(date=date, **fields)
    parts = (*sorted_as, f"date={iso}")
    return pick(rng, TRIAGE_AND_DATE, ticket=ticket), "; ".join(parts), (*sorted_as, iso)


MAKERS = {
    "redact+triage": _redact_triage,
    "orders+math": _math_orders,
    "sql+dates": _dates_sql,
    "redact+dates": _dates_redact,
    "triage+dates": _dates_triage,
}
