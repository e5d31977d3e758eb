"""Calculations in steps that are small enough for a model that reads digit by digit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

SIGNS: Mapping[str, Callable[[int, int], int]] = {
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
    "/": int.__floordiv__,
}


def work_out(a: int, sign: str, b: int) -> str:
    """Return the steps of a calculation in lines, and its answer in the last one.

    What is known by heart is one line: a number with one digit to add or take away, or with round
    tens; a product of the small table, or with round tens; and what such a product is divided by.
    Else the calculation is named first, and then come its steps: tens before units to add, take
    away, multiply and divide, and multiples up to the number if it is divided by more than ten.

    Args:
        a: The first operand.
        sign: One of `SIGNS`.
        b: The second operand.
    """
    result = SIGNS[sign](a, b)
    steps = list(_STEPS[sign](a, b))
    head = f"{a} {sign} {b}"
    lines = [head, *steps] if steps else [f"{head} = {result}"]
    return "\n".join([*lines, f"Answer: {result}"])


def rework(want: str) -> str:
    """Return the steps to an answer that names its calculation in the first line."""
    found = re.match(r"(\d+) ([-+*/]) (\d+)", want)
    if not found:
        raise ValueError(f"there is no calculation in {want!r}")
    return work_out(int(found[1]), found[2], int(found[3]))


def _is_plain(number: int) -> bool:
    """Return whether a number has one digit that matters."""
    return number < 10 or number % 10 == 0


def _sum_steps(a: int, b: int) -> Iterator[str]:
    if not (_is_plain(a) or _is_plain(b)):
        tens = b - b % 10
        yield f"{a} + {tens} = {a + tens}"
        yield f"{a + tens} + {b % 10} = {a + b}"


def _difference_steps(a: int, b: int) -> Iterator[str]:
    if not _is_plain(b):
        tens = b - b % 10
        yield f"{a} - {tens} = {a - tens}"
        yield f"{a - tens} - {b % 10} = {a - b}"


def _product_steps(a: int, b: int) -> Iterator[str]:
    """Split the factor that is not plain, the first of two."""
    if _is_plain(a) and _is_plain(b):
        return
    split, other = (b, a) if _is_plain(a) else (a, b)
    parts = (split - split % 10, split % 10)
    for part in parts:
        one, two = (other, part) if _is_plain(a) else (part, other)
        yield f"{one} * {two} = {one * two}"
    yield f"{parts[0] * other} + {parts[1] * other} = {a * b}"


def _quotient_steps(a: int, b: int) -> Iterator[str]:
    quotient = a // b
    if b > 10:
        yield from (f"{n} * {b} = {n * b}" for n in range(2, quotient + 1))
    elif not _is_plain(quotient):
        tens = quotient - quotient % 10
        yield f"{tens * b} / {b} = {tens}"
        yield f"{a - tens * b} / {b} = {quotient % 10}"
        yield f"{tens} + {quotient % 10} = {quotient}"


_STEPS: Mapping[str, Callable[[int, int], Iterator[str]]] = {
    "+": _sum_steps,
    "-": _difference_steps,
    "*": _product_steps,
    "/": _quotient_steps,
}
