"""Days and years as people write them out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import date

from deploy.demo.tasks.numbers import spell_number
from deploy.demo.tasks.shifts import WEEKDAYS
from deploy.demo.tasks.task import fill, list_words

MONTHS = list_words(
    "January February March April May June July August September October November December"
)
_ROMAN = list_words("I II III IV V VI VII VIII IX X XI XII")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
SLIPS: Mapping[str, Sequence[str]] = {
    "January": list_words("Janurary Januray Jaunary Januery"),
    "February": list_words("Febuary Feburary Februrary Febrary"),
    "March": list_words("Marhc Mrach Martch"),
    "April": list_words("Arpil Apirl Aprill"),
    "May": list_words("Mai Maay"),
    "June": list_words("Juen Jne Junne"),
    "July": list_words("Jully Juyl Jly"),
    "August": list_words("Agust Augest Auguest"),
    "September": list_words("Septmber Setember Septembre Sepetmber"),
    "October": list_words("Octobre Ocotber Octber"),
    "November": list_words("Novmber Novembre Nobember"),
    "December": list_words("Decemeber Decembre Dezember Desember"),
}
"""How months are misspelt."""


def say_number(rng: random.Random, number: int) -> str:
    """Return a number below a thousand in words, joined in one of the ways there are."""
    words = spell_number(number).replace("-", rng.choice("-- "))
    return words.replace(" and ", rng.choice((" ", " and ")))


def spell_ordinal(rng: random.Random, day: int) -> str:
    """Return the ordinal of a day of the month in words."""
    words = say_number(rng, day)
    last = words.replace("-", " ").split()[-1]
    ending = last[:-1] + "ieth" if last.endswith("y") else f"{last}th"
    return words.removesuffix(last) + _ORDINALS.get(last, ending)


def spell_year(rng: random.Random, year: int) -> str:
    """Return a year in words, in one of the ways to say it."""
    century, rest = divmod(year, 100)
    below = say_number(rng, rest)
    if year // 10 == 200 or (century == 20 and rng.random() < 0.5):
        head = "two thousand"
        return f"{head}{rng.choice((' and ', ' '))}{below}" if rest else head
    head = say_number(rng, century)
    if not rest:
        return f"{head} hundred"
    if rest < 10:
        return rng.choice((f"{head} oh {below}", f"{head} hundred and {below}"))
    hundred = century != 20 and rng.random() < 0.3
    return f"{head} hundred and {below}" if hundred else f"{head} {below}"


def write_ordinal(day: int) -> str:
    """Return the ordinal of a day of the month in figures."""
    ending = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def abbreviate(rng: random.Random, month: str) -> str:
    """Return a month cut short, mostly after three letters."""
    if month == "September" and rng.random() < 0.4:
        return "Sept"
    return month[:3]


def write_day(rng: random.Random, form: str, day: date) -> str:
    """Return a day in the form of a template, whose places are the parts of a date."""
    month = MONTHS[day.month - 1]
    mon = abbreviate(rng, month)
    parts: Mapping[str, object] = {
        "d": day.day,
        "dd": f"{day.day:02}",
        "m": day.month,
        "mm": f"{day.month:02}",
        "month": month,
        "MONTH": month.upper(),
        "slip": rng.choice(SLIPS[month]),
        "mon": mon,
        "MON": month[:3].upper(),
        "roman": _ROMAN[day.month - 1],
        "small": _ROMAN[day.month - 1].lower(),
        "year": day.year,
        "yy": f"{day.year % 100:02}",
        "ordinal": write_ordinal(day.day),
        "wrong": write_ordinal(day.day % 27 + 1),
        "nth": spell_ordinal(rng, day.day),
        "NTH": spell_ordinal(rng, day.day).upper(),
        "number": say_number(rng, day.day),
        "yearly": spell_year(rng, day.year),
        "YEARLY": spell_year(rng, day.year).upper(),
        "mth": spell_ordinal(rng, day.month),
        "weekday": WEEKDAYS[day.weekday()],
        "wd": WEEKDAYS[day.weekday()][:3],
    }
    return fill(rng, form, **parts)
