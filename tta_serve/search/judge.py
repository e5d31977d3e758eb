"""A judge: a model behind an OpenAI-compatible address, which rates answers by a rubric."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import openai

from tta_serve.evaluation.questions import Question
from tta_serve.search.errors import SearchError

RUBRIC = (
    "Rate how well the answer serves the request, from 0 (useless) to 10 (perfect). Reply with the"
    " number alone."
)
"""What a judge is told where the user tells it nothing else."""
_TOKENS = 16
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass
class Judge:
    """Rates answers from 0 to 1; equal answers to a question are rated once."""

    url: str
    """The address of its API, such as http://127.0.0.1:8000/v1."""
    model: str
    """The model's name there."""
    rubric: str = RUBRIC
    """What it is told; its reply's first number, from 0 to 10, is the rating."""
    key: str = "unused"
    """The key of the API."""
    _ratings: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._client = openai.AsyncOpenAI(base_url=self.url, api_key=self.key, timeout=120)

    async def rate(self, question: Question, answer: str) -> float:
        """Return the rating of an answer.

        Raises:
            SearchError: The judge cannot be asked, or its reply has no number from 0 to 10.
        """
        key = question.prompt, answer
        if key not in self._ratings:
            self._ratings[key] = await self._ask(question, answer)
        return self._ratings[key]

    async def _ask(self, question: Question, answer: str) -> float:
        wanted = f"\n\nA perfect answer:\n{question.want}" if question.want is not None else ""
        text = f"{self.rubric}\n\nRequest:\n{question.prompt}{wanted}\n\nAnswer:\n{answer}"
        try:
            found = await self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": text}],
                temperature=0,
                max_tokens=_TOKENS,
            )
        except openai.APIError as error:
            raise SearchError(f"the judge at {self.url} does not answer: {error}") from None
        reply = found.choices[0].message.content or ""
        number = _NUMBER.search(reply)
        if number is None or float(number[0]) > 10:
            raise SearchError(
                f"the judge replied {reply[:80]!r}, where a number from 0 to 10 was wanted; say so"
                " in the rubric"
            )
        return float(number[0]) / 10
