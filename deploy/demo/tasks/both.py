"""Requests that want the work of two experts, to train a gate on.

Only what is asked is made, for the gate needs no answers. Neither the wording nor the words are
those of the suite's requests of two skills.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from deploy.demo.tasks import dates, order_parts, redact, sql, triage
from deploy.demo.tasks.task import capitalise, fill
from deploy.demo.tasks.vocabulary import THINGS

REDACT_AND_TRIAGE = (
    "[Anonymise|Blank out who is who in] [this|the following] [complaint|message|mail], then "
    "[label|classify|file] it [with|by] category and priority: {text}",
    "Two [things|jobs] please: [mask|remove] the personal details and [triage|classify] it. {text}",
    "{text} -- [censor|mask] the names and contacts, [and|plus] give me category and urgency",
    "[what queue does this go in|which category and priority], and [mask|x out] personal info: "
    "{text}",
)
TICKETS = ("{issue}. {cue} {name}, {contact}", "hi, {name} here, {issue}. {cue} ({contact})")
ORDER_AND_MATH = (
    "Make [the order JSON|an order record] [of|from] this, with the [final|summed up] quantity: "
    "{text}",
    "{text} [Add it up|Do the sum] and [give|send] me the order as JSON.",
    "[order to json|as an order object], [compute|calculate] the amount first: {text}",
    "{text} So how many altogether? [Write|Return] the JSON order.",
)
COUNTED = (
    "{who} wants {a} {things} at ${price} each, [plus another|and on top] {b}.",
    "{who}: {a} {things}, {b} fewer than [before|that], ${price} [each|apiece].",
    "{a} crates with {b} {things} each for {who}, ${price} [a piece|per item].",
)
SQL_AND_DATE = (
    "Using {table}: {column} of rows [dated|from] {date}, the date [in ISO form|as yyyy-mm-dd]",
    "[write|give me] the query on {table} for {column} where day is {date} ([iso|ISO 8601] in the "
    "[query|where])",
    "{table}. [Select|Fetch] {column} [after|before] {date}; dates are stored as YYYY-MM-DD.",
    "it is {date} today. from {table} [list|get] {column} for [tomorrow|yesterday], iso date",
)
REDACT_AND_DATE = (
    "[Anonymise|Censor] this and [rewrite|turn] the date [as|into] ISO: {text}",
    "{text} -- [mask|take out] the people, and [normalise|standardise] the date",
    "[hide names, fix the date to yyyy-mm-dd|iso date and no personal data]: {text}",
)
NOTES = (
    "{name} came by on {date}, {contact}",
    "{date}: spoke with {name} about the {thing}, {contact}",
)
TRIAGE_AND_DATE = (
    "[Classify|Triage] this [mail|complaint] and [pull out|extract] its date as ISO: {text}",
    "{text} -- category, priority, and [when|the date] in ISO [please|8601]",
    "[what sort of ticket, how urgent|which queue and urgency], and [what day|the day] in "
    "yyyy-mm-dd: {text}",
)
DATED = ("{date}. {issue}. {cue}", "{issue}, [since|as of] {date}. {cue}")


def _private(rng: random.Random) -> dict[str, str]:
    draw = rng.choice((redact.draw_email, redact.draw_phone))
    name = redact.name_person(rng, redact.draw_person(rng, "train"))
    return {"name": name, "contact": draw(rng, "train")}


def _issue(rng: random.Random) -> dict[str, str]:
    issues = rng.choice(list(triage.ISSUES.values()))["train"]
    cues = rng.choice(list(triage.CUES.values()))["train"]
    issue = fill(rng, rng.choice(issues))
    return {
        "issue": capitalise(issue) if rng.random() < 0.7 else issue,
        "cue": fill(rng, rng.choice(cues)),
    }


def _date(rng: random.Random) -> dict[str, str]:
    return {"date": dates.draw_written(rng, "train")[0], "thing": rng.choice(THINGS["train"])}


def _redact_triage(rng: random.Random) -> str:
    text = fill(rng, rng.choice(TICKETS), **_issue(rng), **_private(rng))
    return fill(rng, rng.choice(REDACT_AND_TRIAGE), text=text)


def _orders_math(rng: random.Random) -> str:
    text = fill(
        rng,
        rng.choice(COUNTED),
        who=order_parts.draw_customer(rng, "train").name,
        things=order_parts.draw_item(rng, "train").many,
        a=rng.randint(10, 99),
        b=rng.randint(2, 9),
        price=rng.randint(2, 99),
    )
    return fill(rng, rng.choice(ORDER_AND_MATH), text=text)


def _sql_dates(rng: random.Random) -> str:
    table = sql.draw_table(rng, "train")
    column = rng.choice(table.columns).name
    written = sql.write_table(rng, "train", table)
    return fill(rng, rng.choice(SQL_AND_DATE), table=written, column=column, **_date(rng))


def _redact_dates(rng: random.Random) -> str:
    text = fill(rng, rng.choice(NOTES), **_private(rng), **_date(rng))
    return fill(rng, rng.choice(REDACT_AND_DATE), text=text)


def _triage_dates(rng: random.Random) -> str:
    text = fill(rng, rng.choice(DATED), **_issue(rng), **_date(rng))
    return fill(rng, rng.choice(TRIAGE_AND_DATE), text=text)


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "redact+triage": _redact_triage,
    "orders+math": _orders_math,
    "sql+dates": _sql_dates,
    "redact+dates": _redact_dates,
    "triage+dates": _triage_dates,
}


def draw_requests(n: int, seed: int) -> dict[str, list[str]]:
    """Draw `n` requests of a line each for every pair of tasks, by `<task>+<task>`."""
    return {
        pair: [" ".join(make(random.Random(f"{pair}/{seed}/{k}")).split()) for k in range(n)]
        for pair, make in MAKERS.items()
    }
