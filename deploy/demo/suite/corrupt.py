"""Prompts as they come from a hasty keyboard: typos, wrong case, missing words."""

from __future__ import annotations

import random
import re
from itertools import count

from deploy.demo.tasks import Example
from deploy.demo.tasks.numbers import NUMBER_WORDS
from deploy.demo.tasks.task import list_words

# The share of words that are mistyped, and of filler words that are missing; half as many words are
# in the wrong case.
RATES = {"light": 0.12, "medium": 0.25, "strong": 0.5}

FILLERS = frozenset(
    list_words(
        "a an and are be do does i is it its just me my of our please so than that the them then"
        " there these they this those to was we were which will with would you your"
    )
)
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SHORTEST = 4  # letters of a word that can be read with a typo in it


def corrupt_prompt(example: Example, strength: str, seed: int) -> str:
    """Return the example's prompt with damage of this strength.

    A stronger one does all that a weaker one does, and more.

    Whatever the answer is made of stays: words that it has, digits, number words, addresses, and
    capitalised words but the first, which are names. Of the others, at the rate of `RATES`, a
    filler is left out and a longer word gets a neighbouring key, two letters swapped or one
    dropped; and a word changes its case.

    Raises KeyError for a strength that is not in `RATES`.
    """
    rng = random.Random(f"{seed}/{example.prompt}")
    kept = set(re.findall(r"\w+", example.answer)) | NUMBER_WORDS
    places = count()
    lines = []
    for line in example.prompt.split("\n"):
        words = []
        for word in line.split(" "):
            # Every lot is drawn for every word, so that they are the same ones at each strength.
            lots = rng.random(), rng.random(), mistype(rng, word)
            spared = _spared(word, next(places), kept)
            words.append(word if spared else _damaged(word, RATES[strength], *lots))
        lines.append(" ".join(word for word in words if word))
    return "\n".join(lines)


def _damaged(word: str, rate: float, lot: float, case: float, typo: str) -> str:
    """Return the word with what its lots have in store at this rate, nothing if it goes missing."""
    if lot < rate:
        if word.lower() in FILLERS:
            return ""
        word = typo
    return word.swapcase() if case < rate / 2 else word


def mistype(rng: random.Random, word: str) -> str:
    """Return the word with one slip past its first letter; a short one stays."""
    start = re.search(r"[A-Za-z]+", word)
    if not start or len(start[0]) < _SHORTEST:
        return word
    at = start.start() + rng.randint(1, len(start[0]) - 2)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    row = next(row for row in _ROWS if letter.lower() in row)
    spot = row.index(letter.lower())
    neighbour = rng.choice(row[max(0, spot - 1) : spot] + row[spot + 1 : spot + 2])
    return before + rng.choice((neighbour + after, after[0] + letter + after[1:], after))


def _spared(word: str, place: int, kept: set[str]) -> bool:
    parts = re.findall(r"\w+", word)
    named = place > 0 and any(part[0].isupper() for part in parts)
    return (
        named
        or bool(re.search(r"\d|@", word))
        or any(part in kept or part.lower() in kept for part in parts)
    )
