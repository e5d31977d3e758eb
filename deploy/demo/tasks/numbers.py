"""Numbers in English words."""

from __future__ import annotations

from deploy.demo.tasks.task import list_words

_ONES = list_words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
_TENS = list_words("twenty thirty forty fifty sixty seventy eighty ninety")
NUMBER_WORDS = frozenset((*_ONES, *_TENS, "hundred", "thousand", "dozen", "half"))
"""What numbers in words are made of."""


def spell_number(number: int) -> str:
    """Return a number below a thousand in words."""
    if number < len(_ONES):
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {spell_number(rest)}" if rest else "")
