"""Dates in words to ISO dates.

A date that is written out is answered by its ISO form alone. A relative one is worked out first, as
`deploy.demo.tasks.shifts` does, and the ISO date is the last line. Where a date is in figures
alone, its day is above 12, or the prompt tells the order, or it is the dotted one of Europe.
"""

from __future__ import annotations

import random
from calendar import monthrange
from collections.abc import Mapping, Sequence
from datetime import date

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.shifts import WEEKDAYS, Shift, Unit, work_out
from deploy.demo.tasks.spelling import MONTHS, say_number, write_day
from deploy.demo.tasks.task import (
    BySplit,
    Example,
    Split,
    Task,
    capitalise,
    fill,
    list_words,
)
from deploy.demo.tasks.vocabulary import FIRST_NAMES, LAST_NAMES, THINGS, pluralise
from deploy.demo.tasks.wording import read_wording
from tta_serve.evaluation.scoring import last_line

WORDING = read_wording("dates")

EVENTS: BySplit = {
    "train": list_words(
        "meeting|party|concert|exam|train ride|interview|wedding|dentist appointment|deadline|"
        "match|dinner|workshop|delivery|holiday|flight|lecture|inspection|birthday|payment|"
        "rehearsal|quiz|ski trip|audit|funeral|jumble sale|parents' evening|blood test|MOT|gig|"
        "prom|bar mitzvah|christening|housewarming|half-term|stand-up|sprint review|go-live|"
        "code freeze|release|book club|choir practice|yoga class|vaccination|x-ray|eye test|"
        "surgery|scan|court hearing|bake sale|car boot sale|fish market|harvest|regatta|derby|"
        "cup final|sleepover|baby shower|reunion|anniversary|premiere|vernissage|raffle draw|"
        "tax return|rent payment|stocktaking|oil change|boiler service|chimney sweep|move|"
        "removal|viewing|driving test|viva|thesis defence|oral exam|PTA meeting|AGM|webinar|"
        "site visit|fire drill|power cut|outage|eclipse|carnival|Eid party|Diwali dinner"
    ),
    "validation": list_words("conference|haircut|picnic|board vote|marathon|school trip"),
    "test": list_words(
        "seminar|opening night|check-up|graduation|rent review|tournament|product launch"
    ),
}
_OCCASIONS = list_words("fair class auction swap sale festival market delivery show repair course")
NOUNS = lexicon.split(lexicon.read_nouns(), THINGS)

FIXED_WORDS = {
    1: "tomorrow",
    -1: "yesterday",
    2: "the day after tomorrow",
    -2: "the day before yesterday",
}
_FIXED_KINDS = {1: "tomorrow", -1: "yesterday", 2: "after_tomorrow", -2: "before_yesterday"}
HOLIDAYS: Mapping[str, tuple[int, int]] = {
    "New Year's Day": (1, 1),
    "Valentine's Day": (2, 14),
    "the Fourth of July": (7, 4),
    "Bastille Day": (7, 14),
    "Halloween": (10, 31),
    "Christmas Eve": (12, 24),
    "Christmas Day": (12, 25),
    "Christmas": (12, 25),
    "Boxing Day": (12, 26),
    "New Year's Eve": (12, 31),
}
_SHORT = {
    "days": ("d", "dys"),
    "weeks": ("wks", "weeks"),
    "months": ("mths", "months"),
    "years": ("yrs", "years"),
}
_ROUND = (10, 14, 20, 21, 28, 30, 30, 40, 45, 50, 60, 60, 75, 90, 90, 100, 120, 150, 180)
# Those around the turn of the year and February are harder.
_MONTH_WEIGHTS = (3, 5, 4, 2, 2, 2, 2, 2, 2, 2, 2, 4)


def draw_written(rng: random.Random, split: Split) -> tuple[str, str]:
    """Draw a date of our times in a form that is read at a glance, and its ISO form."""
    return _write(rng, rng.choice(WORDING["formats"][split]), range(1950, 2050))


def draw_reference(rng: random.Random, shift: Shift, crosses: bool) -> date:
    """Draw a day from which a shift leads to one that there is.

    Args:
        rng: The source of chance.
        shift: How far it is to that day.
        crosses: Whether that is in another month; where it cannot be had, anything will do.
    """
    for attempt in range(400):
        year = rng.randint(2015, 2034) if rng.random() < 0.85 else rng.randint(1990, 2049)
        month = rng.choices(range(1, 13), _MONTH_WEIGHTS)[0]
        day = date(year, month, rng.randint(1, monthrange(year, month)[1]))
        try:
            wanted = find_wanted(day, shift)
        except ValueError:
            continue
        if wanted != day and (attempt > 300 or (wanted.month != month) == crosses):
            return day
    raise AssertionError(shift)


def find_wanted(today: date, shift: Shift) -> date:
    """Return the day that a shift leads to."""
    return date.fromisoformat(last_line(work_out(today, shift)))


def _write(
    rng: random.Random, form: str, years: Sequence[int] = (), above: int = 0
) -> tuple[str, str]:
    """Write a day, of one of some years and later in its month than `above`; and its ISO form."""
    if "{yy}" in form and "{year}" not in form:
        years = range(2000, 2030)
    year = rng.choice(years or _draw_years(rng))
    month = rng.randint(1, 12)
    day = date(year, month, rng.randint(above + 1, monthrange(year, month)[1]))
    return write_day(rng, form, day), day.isoformat()


def _draw_years(rng: random.Random) -> Sequence[int]:
    spans = (range(1930, 2050), range(2000, 2035), range(1600, 1930), range(2050, 2100))
    return rng.choices(spans, (60, 22, 15, 3))[0]


def _write_special(rng: random.Random) -> tuple[str, str]:
    """Write a holiday, or the first or last day of a month."""
    year = rng.choice(range(1950, 2050))
    if rng.random() < 0.6:
        name, (month, day) = rng.choice(list(HOLIDAYS.items()))
        return f"{name}{rng.choice((' ', ', ', ' of '))}{year}", date(year, month, day).isoformat()
    month = rng.randint(1, 12)
    which, day = rng.choice((("first", 1), ("last", monthrange(year, month)[1])))
    name = MONTHS[month - 1]
    text = rng.choice((f"the {which} day of {name} {year}", f"the {which} of {name}, {year}"))
    return text, date(year, month, day).isoformat()


def _draw_date(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """Draw a kind of template, a date as it has it, and its ISO form."""
    kinds = ("formats", "odd_formats", "short_formats", "day_first", "month_first", "", "special")
    kind = rng.choices(kinds, (38, 30, 5, 12, 9, 4, 3))[0]
    if kind == "special":
        return "written", *_write_special(rng)
    if kind in ("day_first", "month_first"):
        return kind, *_write(rng, rng.choice(WORDING[f"{kind}_formats"][split]))
    if kind:
        return "written", *_write(rng, rng.choice(WORDING[kind][split]))
    return "written", *_write(rng, _pick_slashed(rng), above=12)


def _pick_slashed(rng: random.Random) -> str:
    return rng.choice(("{dd}/{mm}/{year}", "{d}/{m}/{year}", "{mm}/{dd}/{year}", "{m}/{d}/{year}"))


def _written(rng: random.Random, split: Split) -> Example:
    kind, text, iso = _draw_date(rng, split)
    return Example(_ask(rng, split, kind, date=text), iso)


def _relative(rng: random.Random, split: Split) -> Example:
    shift = _draw_shift(rng)
    today = draw_reference(rng, shift, rng.random() < 0.65)
    kinds = ["ahead" if shift.n > 0 else "back", "either"]
    counted = shift.unit in _SHORT and abs(shift.n) > 1
    kind = rng.choices(
        [*kinds, "plus" if shift.n > 0 else "minus"], (6, 2, 2) if counted else (7, 3, 0)
    )[0]
    span = _write_span(rng, shift) if shift.unit in _SHORT else ""
    fields = {
        "today": _write_today(rng, split, today),
        "span": span,
        "when": _write_when(rng, split, shift, span, alone=False),
        "that": _write_when(rng, split, shift, span, alone=True),
    }
    return Example(_ask(rng, split, kind, **fields), work_out(today, shift))


def _draw_shift(rng: random.Random) -> Shift:
    units: tuple[Unit, ...] = ("days", "weeks", "weekday", "months", "years", "month end")
    unit = rng.choices(units, (50, 18, 21, 6, 3, 2))[0]
    if unit == "month end":
        return Shift(unit)
    sign = rng.choice((1, 1, -1))
    if unit == "weekday":
        return Shift(unit, rng.choice((1, -1)), rng.randint(0, 6))
    return Shift(unit, _draw_number(rng, unit) * sign)


def _draw_number(rng: random.Random, unit: Unit) -> int:
    """Draw how many days, weeks, months or years it is."""
    if unit == "weeks":
        return rng.choice((1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    if unit != "days":
        return rng.randint(1, 11 if unit == "months" else 10)
    ranges = ((1, 2), (2, 12), (10, 45), (46, 150))
    span = rng.choices((*ranges, _ROUND), (22, 28, 28, 8, 14))[0]
    return rng.choice(_ROUND) if span is _ROUND else rng.randint(*span[:2])


def _write_span(rng: random.Random, shift: Shift) -> str:
    """Write how long it is, in figures or words."""
    n = abs(shift.n)
    if n == 2 and shift.unit == "weeks" and rng.random() < 0.6:
        return rng.choice(("a fortnight", "a fortnight", "one fortnight"))
    if n == 6 and shift.unit == "months" and rng.random() < 0.3:
        return "half a year"
    if n == 1:
        return f"{rng.choice(('a', 'a', 'one', '1'))} {shift.unit[:-1]}"
    if rng.random() < 0.05:
        return f"{n} {rng.choice(_SHORT[shift.unit])}"
    number = str(n) if rng.random() < 0.55 else say_number(rng, n)
    return f"{number} {shift.unit}"


def _write_when(rng: random.Random, split: Split, shift: Shift, span: str, *, alone: bool) -> str:
    """Write a shift as people name such a day, in words that can be asked for alone or not."""
    plain = rng.random() < 0.5
    if shift.unit == "month end":
        return rng.choice(WORDING["month_end"][split])
    if shift.unit == "weekday":
        name, ahead = WEEKDAYS[shift.weekday], "next" if shift.n > 0 else "last"
        form = f"{ahead} {{weekday}}" if plain else rng.choice(WORDING[ahead][split])
        return form.format(weekday=name, wd=name[:3])
    if shift.unit == "days" and abs(shift.n) <= 2 and (abs(shift.n) == 1 or rng.random() < 0.7):
        kind = WORDING[_FIXED_KINDS[shift.n]][split]
        return FIXED_WORDS[shift.n] if plain else rng.choice(kind)
    spans = f"{span}'" if span.endswith("s") else f"{span}'s"
    return rng.choice(_list_forms(split, shift, plain, alone)).format(span=span, spans=spans)


def _list_forms(split: Split, shift: Shift, plain: bool, alone: bool) -> Sequence[str]:
    """Return the forms of a day that is so long ahead or back."""
    if shift.n < 0:
        return ("{span} ago",) if plain else WORDING["span_back"][split]
    if alone:
        return ("{span} from now",) if plain else WORDING["span_ahead"][split]
    both = (*WORDING["in_span"][split], *WORDING["span_ahead"][split])
    return ("in {span}", "in {span}", "{span} from now") if plain else both


def _write_today(rng: random.Random, split: Split, today: date) -> str:
    """Write the reference day with its weekday."""
    kind = rng.choices(("formats", "odd_formats", "iso", "slashed"), (72, 18, 6, 4))[0]
    if kind == "iso" or (kind == "slashed" and today.day < 13):
        form = "{year}-{mm}-{dd}"
    elif kind == "slashed":
        form = _pick_slashed(rng)
    else:
        marks = ("weekday", "{wd}", ":", "yy", "so ")
        forms = [one for one in WORDING[kind][split] if not any(mark in one for mark in marks)]
        form = rng.choice(forms)
    form = rng.choice(WORDING["todays"][split]).replace("{date}", form)
    return write_day(rng, form, today)


def _ask(rng: random.Random, split: Split, kind: str, **fields: str) -> str:
    """Fill a template of a kind, in the case that it has itself."""
    template = rng.choice(WORDING[kind][split])
    thing = rng.choice(NOUNS[split])
    event = rng.choice(EVENTS[split])
    if split == "train" and rng.random() < 0.35:
        event = f"{rng.choice(NOUNS[split])} {rng.choice(_OCCASIONS)}"
    prompt = fill(
        rng,
        template,
        event=event,
        thing=thing,
        things=pluralise(thing),
        a="an" if thing[0] in "aeiou" else "a",
        name=rng.choice(FIRST_NAMES[split]),
        last=rng.choice(LAST_NAMES[split]),
        number=rng.randint(2, rng.choice((30, 400, 9999))),
        **fields,
    )
    letters = template
    for place in ("event", "thing", "things", "a", "name", "last", "number", *fields):
        letters = letters.replace(f"{{{place}}}", "")
    if letters.islower():
        return prompt.lower() if rng.random() < 0.6 else prompt
    if letters.isupper():
        return prompt.upper()
    return capitalise(prompt) if template.startswith("{") else prompt


def make(rng: random.Random, split: Split) -> Example:
    """Draw a date that is written out, or one relative to a reference day."""
    return (_relative if rng.random() < 0.6 else _written)(rng, split)


TASK = Task(
    name="dates",
    description="Turns dates in words, relative ones included, into ISO dates.",
    make=make,
    vocabulary={"events": EVENTS, "nouns": NOUNS, **WORDING},
    result=last_line,
)
