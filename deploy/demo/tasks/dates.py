"""Dates in words to ISO dates.

A date that is written out is answered by its ISO form alone. A relative one is worked out first,
and the ISO date is the last line: what is wanted is named, then the days from the reference day to
it follow, counted (`+3: 0 07, 1 08, 2 09, 3 10`) or with their names (`next Fri: Wed 08, Thu 09,
Fri 10`). "Next" is the first such weekday after the reference day, "last" the latest before it.
Results stay within the reference day's month: this model is too small for the lengths of months.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import date, timedelta

from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill, list_words

MONTHS = list_words(
    "January February March April May June July August September October November December"
)
WEEKDAYS = list_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

YEARS: BySplit = {
    "train": list_words("1998 2004 2007 2010 2012 2013 2015 2016 2017 2018 2019 2020 2021 2022"),
    "validation": list_words("2006 2023 2027"),
    "test": list_words("2011 2024 2025 2026"),
}

EVENTS: BySplit = {
    "train": list_words(
        "meeting|party|concert|exam|train ride|interview|wedding|dentist"
        " appointment|deadline|match|dinner|workshop|delivery|"
        "holiday|flight|lecture|inspection|birthday|payment|rehearsal"
    ),
    "validation": list_words("conference|haircut|picnic|board vote|marathon|school trip"),
    "test": list_words(
        "seminar|opening night|check-up|graduation|rent review|tournament|product launch"
    ),
}

FORMATS: BySplit = {
    "train": (
        "{d} {month} {year}",
        "{month} {d}, {year}",
        "{ordinal} {month} {year}",
        "{month} {ordinal}, {year}",
        "the {ordinal} of {month} {year}",
        "{mon} {d}, {year}",
        "{d} {mon} {year}",
        "{year}/{mm}/{dd}",
        "{dd}.{mm}.{year}",
        "{mon} {ordinal} {year}",
        "{year}, {month} {d}",
        "{ordinal} of {mon} {year}",
        "{month} {d}. {year}",
        "the {d}. of {month} {year}",
        "{d}., {month} {year}",
        "{d}/{month}/{year}",
        "{dd} {mon}. {year}",
        "{year}, {d}. {month}",
        "{month}-{d}-{year}",
    ),
    "validation": (
        "{month} {d} {year}",
        "the {ordinal} of {month}, {year}",
        "{d}. {month} {year}",
        "{mon}. {d}, {year}",
        "{dd}-{mon}-{year}",
    ),
    "test": (
        "{month} the {ordinal}, {year}",
        "{d} {month}, {year}",
        "the {ordinal} day of {month} {year}",
        "{month} {ordinal} {year}",
        "{d}. {mon} {year}",
        "{year} {month} {d}",
    ),
}

WRITTEN: BySplit = {
    "train": (
        "[Write|Put|Give] {date} [as an ISO date|in ISO format|as YYYY-MM-DD].",
        "[Convert|Change|Normalise|Normalize] {date} to [ISO|an ISO date|ISO format|YYYY-MM-DD].",
        (
            "The {event} [is|takes place|was] on {date}. [Give the ISO date|What is the ISO"
            " date|Which ISO date is that]?"
        ),
        "[ISO date|Date in ISO format|YYYY-MM-DD] [for|of] {date}",
        "What is {date} [in ISO format|as an ISO date|written as YYYY-MM-DD]?",
        "[Find|Extract|Get] the date: the {event} [is planned for|starts on|ended on] {date}.",
        "[Standardise|Standardize|Reformat] the date {date}.",
        "{date} in ISO, please.",
        "Our {event} is {date}. [Date as YYYY-MM-DD|ISO date please|Normalise the date].",
    ),
    "validation": (
        "Please turn {date} into the ISO notation.",
        "We booked the {event} for {date}; state the day in ISO style.",
        "How do I write {date} in ISO form?",
    ),
    "test": (
        "Express {date} in the ISO standard.",
        "I need the ISO version of {date}.",
        "They moved the {event} to {date}. Tell me the date in ISO format.",
        "Rewrite this date as YYYY-MM-DD: {date}",
    ),
}

TODAY: BySplit = {
    "train": (
        "Today is {weekday}, {date}.",
        "[It is|Today it is] {weekday}, {date}[ today|].",
        "[Today's date|The date today|Today's day] is {weekday}, {date}.",
        "Today: {weekday} {date}.",
        "[If|Suppose|Given that] today is {weekday}, {date}:",
        "[Reference day|Reference date]: {weekday}, {date}.",
        "[This is|We write] {weekday}, {date}.",
        "[My calendar says|The clock says|The paper is from] {weekday}, {date}.",
        "[Starting from|Counting from|Seen from] {weekday}, {date}:",
    ),
    "validation": (
        "We have {weekday}, {date}.",
        "As of {weekday}, {date}:",
        "The calendar shows {weekday}, {date}.",
    ),
    "test": (
        "The current date is {weekday}, {date}.",
        "Now it is {weekday}, {date}.",
        "Assume that today is {weekday}, {date}.",
    ),
}

AHEAD: BySplit = {
    "train": (
        "What date is [it |]{when}?",
        "[When is|Which date is|What is the date of] {when}?",
        "The {event} is {when}. [When is it|What date is that|Which date is that|Give the date]?",
        "[Give|Write|Tell me] the [ISO date|date] [for|of] {when}.",
        "We have [a|the] {event} {when}, [on which date|what date is that]?",
        "{when} as an ISO date?",
        "[Which|What] day of the calendar is {when}?",
        "The {event} [happens|begins|comes|falls] {when}. [Name|State|Find] [the date|its date].",
        "[Which|What] date [do we have|do we write|will we have] {when}?",
        "[My|Our|Her] {event} [is set for|was moved to] {when}; [so which date|what date is it]?",
    ),
    "validation": (
        "Which calendar date will it be {when}?",
        "The {event} happens {when}; name its date.",
    ),
    "test": (
        "What will the date be {when}?",
        "The {event} takes place {when}. On what date?",
        "I would like to know the date of {when}.",
    ),
}

BACK: BySplit = {
    "train": (
        "What date was [it |]{when}?",
        "[When was|Which date was|What was the date of] {when}?",
        (
            "The {event} was {when}. [When was it|What date was that|Which date was that|Give the"
            " date]?"
        ),
        "[Give|Write|Tell me] the [ISO date|date] [for|of] {when}.",
        "We had [a|the] {event} {when}, [on which date|what date was that]?",
        "{when} as an ISO date?",
        "[Which|What] day of the calendar was {when}?",
        "The {event} [happened|began|came|ended] {when}. [Name|State|Find] [the date|its date].",
        "[Which|What] date [did we write|was the day] {when}?",
        "[My|Our|Her] {event} [was over|ended] {when}; [so which date|what date was it]?",
    ),
    "validation": (
        "Which calendar date did we have {when}?",
        "The {event} happened {when}; name its date.",
    ),
    "test": (
        "What was the day's date {when}?",
        "The {event} took place {when}. On what date?",
        "I would like to know the date of {when}.",
    ),
}

# How each split says what the plain words (tomorrow, in 3 days, next Friday, ...) say; those all
# splits share.
OTHER_WORDS: Mapping[str, BySplit] = {
    "in": {
        "train": ("{n} days from now", "{n} days later", "in {n} days' time"),
        "validation": ("after {n} days",),
        "test": ("{n} days from today",),
    },
    "ago": {
        "train": ("{n} days before today", "{n} days before"),
        "validation": ("{n} days back",),
        "test": ("{n} days earlier",),
    },
    "next": {
        "train": ("this coming {weekday}", "the next {weekday}"),
        "validation": ("the following {weekday}",),
        "test": ("the coming {weekday}",),
    },
    "last": {
        "train": ("this past {weekday}", "the last {weekday}"),
        "validation": ("the past {weekday}",),
        "test": ("the previous {weekday}",),
    },
}
PLAIN_WORDS = {
    "in": "in {n} days",
    "ago": "{n} days ago",
    "next": "next {weekday}",
    "last": "last {weekday}",
}
FIXED_WORDS = {
    1: "tomorrow",
    -1: "yesterday",
    2: "the day after tomorrow",
    -2: "the day before yesterday",
}


def _ordinal(day: int) -> str:
    ending = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _spell(rng: random.Random, split: Split, day: date) -> str:
    """Return the date in one of the split's formats."""
    month = MONTHS[day.month - 1]
    parts = {
        "d": day.day,
        "dd": f"{day.day:02}",
        "mm": f"{day.month:02}",
        "month": month,
        "mon": month[:3],
        "year": day.year,
    }
    return rng.choice(FORMATS[split]).format(ordinal=_ordinal(day.day), **parts)


def _day(rng: random.Random, split: Split, offset: int = 0) -> date:
    """Draw a day such that the one `offset` days from it lies in the same month."""
    while True:
        day = date(int(rng.choice(YEARS[split])), rng.randint(1, 12), 1) + timedelta(
            rng.randint(0, 27)
        )
        if (day + timedelta(offset)).month == day.month:
            return day


def _offset(rng: random.Random) -> tuple[str, int]:
    """Draw a kind of relative date and the days it lies away."""
    kind = rng.choice(("fixed", "in", "ago", "next", "next", "last", "last"))
    if kind == "fixed":
        return kind, rng.choice(list(FIXED_WORDS))
    days = rng.randint(2 if kind in ("in", "ago") else 1, 7)
    return kind, days if kind in ("in", "next") else -days


def _relative(rng: random.Random, split: Split) -> Example:
    kind, offset = _offset(rng)
    today = _day(rng, split, offset)
    wanted = today + timedelta(offset)
    if kind == "fixed":
        when = FIXED_WORDS[offset]
    else:
        words = PLAIN_WORDS[kind] if rng.random() < 0.5 else rng.choice(OTHER_WORDS[kind][split])
        when = words.format(n=abs(offset), weekday=WEEKDAYS[wanted.weekday()])
    templates = (AHEAD if offset > 0 else BACK)[split]
    question = capitalise(
        fill(rng, rng.choice(templates), when=when, event=rng.choice(EVENTS[split]))
    )
    weekday = WEEKDAYS[today.weekday()]
    stated = fill(rng, rng.choice(TODAY[split]), weekday=weekday, date=_spell(rng, split, today))
    worked = (_walked if kind in ("next", "last") else _counted)(today, offset)
    return Example(f"{stated} {question}", f"{worked}\n{wanted.isoformat()}")


def _days(today: date, offset: int) -> list[date]:
    """Return every day from the reference day to the wanted one."""
    step = 1 if offset > 0 else -1
    return [today + timedelta(away) for away in range(0, offset + step, step)]


def _counted(today: date, offset: int) -> str:
    """Return the days to go, then every day on the way with its number."""
    return f"{offset:+}: " + ", ".join(
        f"{away} {day.day:02}" for away, day in enumerate(_days(today, offset))
    )


def _walked(today: date, offset: int) -> str:
    """Return the wanted weekday, then every day on the way with its name."""
    named = [f"{WEEKDAYS[day.weekday()][:3]} {day.day:02}" for day in _days(today, offset)]
    return f"{'next' if offset > 0 else 'last'} {named[-1][:3]}: {', '.join(named)}"


def make(rng: random.Random, split: Split) -> Example:
    """Draw a date that is written out, or one relative to a reference day."""
    if rng.random() < 0.7:
        return _relative(rng, split)
    day = _day(rng, split)
    prompt = fill(
        rng,
        rng.choice(WRITTEN[split]),
        date=_spell(rng, split, day),
        event=rng.choice(EVENTS[split]),
    )
    return Example(capitalise(prompt), day.isoformat())


TASK = Task(
    name="dates",
    description="Turns dates in words, relative ones included, into ISO dates.",
    make=make,
    vocabulary={
        "years": YEARS,
        "events": EVENTS,
        "formats": FORMATS,
        "written": WRITTEN,
        "today": TODAY,
    }
    | {"ahead": AHEAD, "back": BACK}
    | {f"words {kind}": words for kind, words in OTHER_WORDS.items()},
)
