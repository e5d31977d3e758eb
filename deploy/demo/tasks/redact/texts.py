"""Texts with places for personal data."""

from __future__ import annotations

import random

from deploy.demo.tasks.redact.grammar import WORDING, draw, expand
from deploy.demo.tasks.task import Split, capitalise
from deploy.demo.tasks.vocabulary import PLAIN

_ENDS = (".", "!", "?")
_PLACES = ("{name}", "{name}", "{first}", "{email}", "{phone}", "{card}", "{passport}")


def draw_text(rng: random.Random, split: Split) -> str:
    """Draw a text of one to three sentences, with places for personal data.

    Two thirds speak as people do. The rest have no story, and are copied whatever they say.
    """
    kind = rng.choices(("text", "odd", "words"), (65, 25, 10 if split == "train" else 0))[0]
    if kind == "words":
        return _scatter(rng)
    text = expand(rng, split, rng.choice(WORDING[kind][split]))
    if kind == "odd":
        text = capitalise(text)
    if "\n" in text or rng.random() < 0.65:
        return text
    pair = [text, draw(rng, split, "extra")]
    if rng.random() < 0.3:
        pair.reverse()
    if rng.random() < 0.15:
        return "\n".join(pair)
    return f"{end_sentence(pair[0])} {pair[1]}"


def end_sentence(text: str) -> str:
    """Return the text with a period if it has no end."""
    return text if text.endswith(_ENDS) else f"{text}."


def _scatter(rng: random.Random) -> str:
    """Draw words without a story, with one or two places for personal data."""
    words = rng.choices(PLAIN, k=rng.randint(4, 9))
    places = rng.sample(_PLACES, rng.randint(1, 2))
    # Between two of them is a word, so that it is plain where each of them ends.
    for at, place in zip(
        sorted(rng.sample(range(len(words)), len(places)))[::-1], places, strict=True
    ):
        words.insert(at, place)
    return " ".join(words) + rng.choice((".", "?", "!", ""))
