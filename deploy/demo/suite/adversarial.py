"""Prompts in one task's words that ask for another task, or for none."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

from deploy.demo.suite.question_parts import HELD, draw_private, make_question, pick
from deploy.demo.tasks import TASKS, Example, redact, sql, triage
from deploy.demo.tasks.dates import EVENTS
from deploy.demo.tasks.task import capitalise
from deploy.demo.tasks.vocabulary import THINGS, pluralise
from tta_serve.evaluation.questions import ADVERSARIAL, Question

# What may stand in for a task's own nouns.
STAND_INS: Mapping[str, Sequence[str]] = {
    "orders": (
        "database table",
        "support ticket",
        "pocket calendar",
        "phone book",
        "maths workbook",
        "date stamp",
    ),
    "math": (
        "database table",
        "support ticket",
        "customer record",
        "pocket calendar",
        "phone number",
    ),
    "dates": (
        "database backup",
        "parcel delivery",
        "customer order",
        "support ticket review",
        "sum of all payments",
    ),
    "sql": (
        "tickets: category, agent, product; replies, hours",
        "orders: customer, item, courier; qty, price",
        "messages: name, email, phone; words, pages",
        "holidays: weekday, month, country; days, dollars",
        "exercises: pupil, teacher, lesson; sums, errors",
    ),
}

# Category to what a ticket says in the words of other tasks.
ISSUES: Mapping[str, Sequence[str]] = {
    "billing": (
        "the invoice dated 3 May 2024 asks 12 dollars each for 8 lamps, yet we agreed on 10",
        "you charged my card for {number} orders in a row, what is the sum of that",
    ),
    "login": (
        "since Monday the table of my orders asks for a password that I do not have",
        "I cannot log in to look up which customers have more than {number} orders",
    ),
    "shipping": (
        "the {number} {things} of order {many} were due next Friday and the courier has lost them",
        "my parcel should have been here on 12 March, that was {number} days ago",
    ),
    "bug": (
        "the SQL export crashes when a table has more than {number} columns",
        "the date picker shows an error when I click on next Monday",
    ),
    "feature": (
        "could you add a button that hides names and phone numbers",
        "it would be great if the order list could be sorted by date and exported as JSON",
    ),
}

# To redact, in the words of other tasks; some of them have no person but an address.
TEXTS = (
    "{name} ordered {number} {things} at {hour} dollars each.",
    "{name} has {number} {things} and buys {hour} more, how many is that?",
    "Count the orders of {name} in the table customers where the price is above {number}.",
    "The invoice for {contact} is wrong and it is very urgent.",
    "Today is Monday, {name} left {hour} days ago.",
    "{name} cannot log in, please call {contact} right away.",
)

# In the tasks' words, and none of the tasks.
NONE = """Who invented SQL, and what was it first called?
Is it fun to work as a database administrator?
What is the difference between a table and a spreadsheet?
How do I sort my bookshelf, by author or by colour?
Why do some people select their seats on a plane so early?
Write a poem about a customer who can never decide.
What did people order in the taverns of ancient Rome?
How do I get a waiter's attention when I want to order?
Which 12 items belong in every first aid box?
What is JSON, and why do programmers like it?
How did merchants add up their prices before calculators?
What is so special about the number 12 in mathematics?
Tell me a joke about multiplication.
How do I explain fractions to a child who hates maths?
Who sells more apples, Italy or Poland?
How do I stay polite when a customer shouts at me?
What makes a good support team?
Why are parcels so often late before Christmas?
Can a bug crash a spacecraft?
Where do the names of the weekdays come from?
Why does February have only 28 days?
Give me ideas for a first date on a Friday evening.
What happened in the world in March 1989?
Is tomorrow always another day?
How do spies hide who they are?
What is the most common first name in the world?
Should I put my phone number on my website?
Who is allowed to read secret files after 50 years?
How do I remember the names of people I have just met?
Is it rude to phone somebody at lunch time?""".splitlines()


def draw_adversarial(n: int, seed: int) -> list[Question]:
    """Draw `n` questions for each of the six tasks, and some that are for none.

    Those are as many as the questions of all tasks, up to thirty.
    """
    found = [
        make_question(ADVERSARIAL, task, example)
        for task in TASKS
        for example in _examples(task, n, seed)
    ]
    return found + [Question(ADVERSARIAL, prompt) for prompt in NONE[: n * len(TASKS)]]


def _examples(task: str, n: int, seed: int) -> list[Example]:
    rng = random.Random(f"adversarial/{task}/{seed}")
    makers = {"triage": _ticket, "redact": _text, "sql": _query}
    drawn = (
        (makers[task](rng) for _ in count())
        if task in makers
        else _disguised(rng, task, 20 * n, seed)
    )
    return list(islice({example.prompt: example for example in islice(drawn, 4 * n)}.values(), n))


def _ticket(rng: random.Random) -> Example:
    category, priority = rng.choice(list(ISSUES)), rng.choice(list(triage.CUES))
    issue = pick(
        rng,
        ISSUES[category],
        number=rng.randint(3, 40),
        many=rng.randint(3, 40),
        things=_things(rng),
    )
    cue = pick(rng, triage.CUES[priority])
    return Example(
        f"{capitalise(issue)}. {cue}".strip(), f"category={category}; priority={priority}"
    )


def _text(rng: random.Random) -> Example:
    form = pick(
        rng, TEXTS, number=rng.randint(2, 40), hour=rng.randint(2, 12), things=_things(rng), **HELD
    )
    text, clean = draw_private(rng).both(form)
    return Example(redact.ask_to_redact(rng, "test", capitalise(text)), capitalise(clean))


def _query(rng: random.Random) -> Example:
    table = sql.read_table(rng.choice(STAND_INS["sql"]))
    prompt, statement = sql.draw(rng, "test", table)
    return Example(prompt, statement.to_sql())


def _things(rng: random.Random) -> str:
    return pluralise(rng.choice(THINGS["test"]))


def _disguised(rng: random.Random, task: str, most: int, seed: int) -> Iterator[Example]:
    """Draw test examples with the task's own nouns changed for other tasks'.

    No other slice has any of these examples.
    """
    for example in TASKS[task].examples("test", most, seed + 1):
        words = _words(task, rng.choice(STAND_INS[task]))
        prompt, answer = (_swapped(text, words) for text in (example.prompt, example.answer))
        if prompt != example.prompt:
            yield Example(prompt, answer)


def _swapped(text: str, words: Mapping[str, str]) -> str:
    """Return the text with whole words changed, the longest that there are."""
    known = "|".join(sorted(words, key=len, reverse=True))
    return re.sub(rf"\b({known})\b", lambda found: words[found[1]], text)


def _words(task: str, stand_in: str) -> dict[str, str]:
    """Return what to change for what."""
    if task == "dates":
        return dict.fromkeys(EVENTS["test"], stand_in)
    return {word: form(stand_in) for form in (str, pluralise) for word in map(form, THINGS["test"])}
