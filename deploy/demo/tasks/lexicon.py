"""Nouns by the thousand, from a package.

What is to be copied must be too varied in training to be recalled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from wonderwords import is_profanity

from deploy.demo.tasks.task import BySplit

# Those whose plural takes no -s or -es, and those that are plurals already, are left out.
IRREGULAR = re.compile(r"([^aeiou]y|fe?|s|o|man|men)$")


@cache
def read_nouns() -> tuple[str, ...]:
    """Return English nouns of one word, in the singular."""
    listed = (
        files("wonderwords.assets").joinpath("nounlist.txt").read_text(encoding="utf-8").split()
    )
    plain = (
        word for word in listed if re.fullmatch("[a-z]{3,12}", word) and not IRREGULAR.search(word)
    )
    return tuple(sorted({word for word in plain if not is_profanity(word)}))


def split(words: Iterable[str], hand: BySplit) -> BySplit:
    """Split words: nine tenths for training, a tenth for validation.

    None of them is in the lists made by hand, of which the test's is the test's here.

    Args:
        words: To be split.
        hand: Lists made by hand.
    """
    taken = {
        word
        for phrases in hand.values()
        for phrase in phrases
        for word in (phrase, *phrase.split())
    }
    free = sorted(set(words) - taken)
    held = free[::10]
    return {
        "train": [word for at, word in enumerate(free) if at % 10],
        "validation": held,
        "test": hand["test"],
    }
