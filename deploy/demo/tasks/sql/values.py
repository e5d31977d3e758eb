"""Values that conditions compare with, of every kind of column."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from string import ascii_uppercase

from deploy.demo.tasks.numbers import spell_number
from deploy.demo.tasks.spelling import MONTHS
from deploy.demo.tasks.sql.statements import Value
from deploy.demo.tasks.sql.tables import NOUNS, PLACES, WORDS, Column
from deploy.demo.tasks.task import Split, capitalise
from deploy.demo.tasks.vocabulary import FIRST_NAMES, LAST_NAMES, invent_word, join_words

NUMBERS: Mapping[Value, str] = {n: spell_number(n) for n in range(21)}


def draw_value(rng: random.Random, split: Split, column: Column) -> Value:
    """Draw a value that a column may have."""
    if column.kind == "text":
        return _DRAWS[column.values](rng, split)
    if column.kind == "flag":
        return rng.choice(("yes", "no", "no", "yes", 0, 1))
    if column.kind == "year":
        return rng.choice((rng.randint(1880, 2026), rng.randint(1990, 2025)))
    if column.kind == "date":
        day = f"{rng.randint(1990, 2026)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        return day[:7] if rng.random() < 0.08 else day
    return _draw_number(rng, column)


def _draw_number(rng: random.Random, column: Column) -> int | float:
    low, high = column.range
    if column.part and rng.random() < 0.6:
        return float(f"{rng.randint(low, high - 1)}.{rng.randint(1, 9)}")
    # Small numbers are as frequent as great ones, and most are round.
    drawn = min(high, int(low * (high / low) ** rng.random()))
    size: int = 10 ** max(0, len(str(drawn)) - rng.choice((1, 1, 2, 2, 4)))
    return max(low, drawn // size * size)


def _draw_first(rng: random.Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.4:
        return capitalise(invent_word(rng))
    return rng.choice(FIRST_NAMES[split])


def _draw_last(rng: random.Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.4:
        return capitalise(rng.choice((invent_word, join_words))(rng))
    return rng.choice(LAST_NAMES[split])


def _draw_full(rng: random.Random, split: Split) -> str:
    first, last = _draw_first(rng, split), _draw_last(rng, split)
    form = rng.choice(("{0}", "{1}", "{0} {1}", "{0} {1}", "Dr {1}", "Mrs {1}", "{2}. {1}"))
    return form.format(first, last, first[0])


def draw_place(rng: random.Random, split: Split) -> str:
    """Draw a place of the world or, in training, of nobody's world."""
    if split == "train" and rng.random() < 0.45:
        form = rng.choice(("{}", "{}", "{}", "New {}", "{} Bay", "St. {}", "Bad {}", "{}-{}"))
        words = [capitalise(rng.choice((invent_word, join_words))(rng)) for _ in range(2)]
        return form.format(*words)
    return rng.choice(PLACES[split])


def _draw_word(rng: random.Random, split: Split) -> str:
    if split == "test" or rng.random() < 0.5:
        return rng.choice(WORDS[split])
    word = rng.choice(NOUNS[split])
    pair = f"{word} {rng.choice(NOUNS[split])}" if rng.random() < 0.2 else word
    return rng.choice((pair, pair, capitalise(pair)))


def _draw_title(rng: random.Random, split: Split) -> str:
    if rng.random() < 0.25:
        return draw_place(rng, split)
    size = rng.choice((1, 2, 2, 2, 3))
    words = [capitalise(rng.choice(NOUNS[split])) for _ in range(size)]
    form = rng.choice(("{}", "{}", "{}", "{}", "Hotel {}", "The {}", "{} & Sons", "FC {}", "La {}"))
    return form.format(" ".join(words))


def _draw_brand(rng: random.Random, split: Split) -> str:
    word = rng.choice((_draw_last, _draw_last, _draw_word))(rng, split)
    return rng.choice((word, word, capitalise(word), word.upper(), f"{word}-{rng.randint(2, 90)}"))


def _draw_code(rng: random.Random, split: Split) -> Value:
    del split
    letter = rng.choice(ascii_uppercase)
    return rng.choice(
        (
            rng.randint(1, 30),
            rng.randint(1, 400),
            letter,
            f"{letter}{rng.randint(1, 40)}",
            f"{rng.randint(1, 12)}{letter.lower()}",
            f"{letter}{rng.choice(ascii_uppercase)}-{rng.randint(10, 999)}",
        )
    )


def _draw_month(rng: random.Random, split: Split) -> str:
    del split
    dated = f"{rng.randint(2015, 2026)}-{rng.randint(1, 12):02}"
    name = rng.choice(MONTHS)
    return rng.choice((dated, name, name, name.lower()))


def _draw_noun(rng: random.Random, split: Split) -> str:
    return rng.choice((rng.choice(NOUNS[split]), _draw_word(rng, split)))


_DRAWS: Mapping[str, Callable[[random.Random, Split], Value]] = {
    "@first": _draw_first,
    "@last": _draw_last,
    "@full": _draw_full,
    "@place": draw_place,
    "@word": _draw_word,
    "@noun": _draw_noun,
    "@title": _draw_title,
    "@brand": _draw_brand,
    "@code": _draw_code,
    "@month": _draw_month,
}
