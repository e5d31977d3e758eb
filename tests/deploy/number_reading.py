"""Reads the numbers of a text, by other means than the generators write them."""

from __future__ import annotations

import re

_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {
    **{word: n for n, word in enumerate(_SMALL)},
    **{word: 10 * n for n, word in enumerate(_TENS, 2)},
}
_DIGITS = r"\d+(?:,\d+)*(?:\.\d+)?"
_ONES = "|".join(_SMALL[1:10])
_BELOW = rf"(?:(?:{'|'.join(_TENS)})(?:[ -](?:{_ONES}))?|{'|'.join(reversed(_SMALL))})"
_SPELT = (
    r"half a dozen",
    rf"(?:(?:{_BELOW}|a) )?dozen",
    rf"(?:{_ONES}|a) hundred(?:(?: and)? {_BELOW})?",
    _BELOW,
)
_NUMBER = rf"{_DIGITS}|\b(?:{'|'.join(_SPELT)})\b"


def read_numbers(text: str) -> list[float]:
    """Return the numbers of a text in its order, those in digits and those in words."""
    return [_read(found) for found in re.findall(_NUMBER, text.lower())]


def _read(number: str) -> float:
    if number[0].isdigit():
        thousands = re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", number)
        return float(number.replace(",", "" if thousands else "."))
    if number == "half a dozen":
        return 6
    if number.endswith("dozen"):
        return 12 * (_add(number.removesuffix("dozen")) or 1)
    hundreds, _, rest = number.rpartition("hundred")
    return (100 * (_add(hundreds) or 1) if "hundred" in number else 0) + _add(rest)


def _add(words: str) -> int:
    return sum(_WORDS.get(word, 0) for word in re.split("[ -]", words))
