"""What the answer of a mix to a question is worth, from 0 to 1 or as a log-probability."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tta_serve.evaluation.arms import MixRequest
from tta_serve.evaluation.questions import Question
from tta_serve.evaluation.scoring import Score, score
from tta_serve.evaluation.server_client import ServerClient
from tta_serve.search.errors import SearchError

Measure = Callable[[Question, str], Coroutine[Any, Any, float]]
"""Returns what an answer to a question is worth."""


class Objective(Protocol):
    """What is searched for: the mixes whose score is the greatest."""

    async def score(self, question: Question, asked: MixRequest) -> float:
        """Return what a mix is worth by one question."""
        ...


@dataclass(frozen=True)
class AnswerObjective:
    """The worth of greedy answers."""

    server: ServerClient
    """Who answers."""
    measure: Measure
    """What an answer is worth."""
    limits: Mapping[Question, int]
    """The most tokens of an answer to each question."""

    async def score(self, question: Question, asked: MixRequest) -> float:
        """Ask for the answer, and measure it."""
        found = await self.server.answer(question.prompt, asked, self.limits[question])
        return await self.measure(question, found.choices[0].message.content or "")


@dataclass(frozen=True)
class ReferenceObjective:
    """The mean log-probability of the tokens of the wanted answer, in nats."""

    server: ServerClient
    """Who reads it."""
    _tokens: dict[Question, tuple[list[int], int]] = field(default_factory=dict)

    async def score(self, question: Question, asked: MixRequest) -> float:
        """Have the mix read the prompt and the wanted answer."""
        if question not in self._tokens:
            self._tokens[question] = await self._encode(question)
        tokens, begin = self._tokens[question]
        read = await self.server.read_logprobs(tokens, asked)
        own = read[begin - 1 :]  # the first token of a text has no log-probability
        return sum(own) / len(own)

    async def _encode(self, question: Question) -> tuple[list[int], int]:
        turn = [{"role": "user", "content": question.prompt}]
        prompt = await self.server.tokenize(messages=turn, add_generation_prompt=True)
        answer = await self.server.tokenize(prompt=question.want, add_special_tokens=False)
        return [*prompt, *answer], len(prompt)


async def measure_exact(question: Question, answer: str) -> float:
    """Return 1 for a right answer, else 0."""
    return _score(question, answer).exact


async def measure_graded(question: Question, answer: str) -> float:
    """Return the credit for what is right in an answer."""
    return _score(question, answer).graded


def load_function(place: str) -> Measure:
    """Return a measure that calls a function of the user, `module:function`.

    It is called with the `Question` and the answer, and returns a number. The current folder is
    looked at first.

    Raises:
        SearchError: There is no such function; later, it returns no number.
    """
    module, _, name = place.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SearchError(
            f"--objective {place}: {error}; wanted is graded, exact, logprob, judge or"
            " MODULE:FUNCTION"
        ) from None
    finally:
        sys.path.remove(os.getcwd())

    async def measure(question: Question, answer: str) -> float:
        found = function(question, answer)
        if not isinstance(found, int | float) or not math.isfinite(found):
            raise SearchError(f"{place} returned {found!r}, which is no finite number")
        return float(found)

    return measure


def check_wanted(questions: Sequence[Question]) -> None:
    """Raise SearchError for a question without a wanted answer."""
    for question in questions:
        if question.want is None:
            raise SearchError(
                f"the question {question.prompt[:60]!r} has no wanted answer (`want`), which this"
                " objective compares with; use a judge or a function"
            )


def _score(question: Question, answer: str) -> Score:
    return score(question.kind, question.want or "", question.parts, answer, question.rule)
