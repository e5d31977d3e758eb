"""Which questions are searched on, and which are held out to check what was found."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tta_serve.evaluation.questions import Question
from tta_serve.search.errors import SearchError


@dataclass(frozen=True)
class QuestionSplit:
    """Two lists of questions that have none in common."""

    searched: tuple[Question, ...]
    """What candidates are scored on."""
    held_out: tuple[Question, ...]
    """What the best one is checked on."""


def split_questions(
    questions: Sequence[Question], share: float, seed: int, most: int | None = None
) -> QuestionSplit:
    """Hold out a share of each task's questions, at random.

    Args:
        questions: All of them; what is asked twice counts once.
        share: How much is held out, between 0 and 1.
        seed: Of the draws.
        most: How many questions are searched on at most, of each task as many as of another.

    Raises:
        SearchError: They are too few.
    """
    groups = defaultdict[str, list[Question]](list)
    for question in dict.fromkeys(questions):
        groups[name_group(question)].append(question)
    rng, searched, held = random.Random(seed), list[list[Question]](), list[Question]()
    for name in sorted(groups):
        own = groups[name]
        rng.shuffle(own)
        out = min(max(1, round(share * len(own))), len(own) - 1)
        held += own[:out]
        searched.append(own[out:])
    if not held:
        raise SearchError("a search wants two different questions or more of one task at least")
    turns = [(turn, own) for group in searched for turn, own in enumerate(group)]
    ordered = [own for _, own in sorted(turns, key=lambda pair: pair[0])]
    return QuestionSplit(tuple(ordered[:most]), tuple(held))


def name_group(question: Question) -> str:
    """Return which task a question counts for: its experts, or its slice where it names none."""
    return question.task or question.slice
