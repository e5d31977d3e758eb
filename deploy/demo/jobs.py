"""Questions with right answers, asked of a server over HTTP by several users at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from openai import AsyncOpenAI

from deploy.demo.tasks import TASKS, Example
from router.probing import gather_all

AT_ONCE = 8
TIMEOUT_S = 600
_MOST_TOKENS = 256


class Job(NamedTuple):
    """One question."""

    label: str
    """What its answer is counted under."""
    request: Mapping[str, Any]
    """The fields of the request beside the question: `model`, and `extra_body` for `merge`."""
    task: str
    """Whose question it is."""
    example: Example
    """The question and its right answer."""


def score_jobs(url: str, jobs: Sequence[Job], tell: Callable[[], None]) -> dict[str, float]:
    """Ask all questions, and return the share of right answers under each label.

    Args:
        url: The server's address.
        jobs: The questions.
        tell: Called after each answer.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    right = asyncio.run(_ask_all(url, jobs, tell))
    found: dict[str, list[bool]] = {}
    for job, is_right in zip(jobs, right, strict=True):
        found.setdefault(job.label, []).append(is_right)
    return {label: sum(own) / len(own) for label, own in found.items()}


async def _ask_all(url: str, jobs: Sequence[Job], tell: Callable[[], None]) -> list[bool]:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=TIMEOUT_S)

    async def ask(job: Job) -> bool:
        messages: Any = [{"role": "user", "content": job.example.prompt}]
        answer: Any = await client.chat.completions.create(
            messages=messages, temperature=0, max_tokens=_MOST_TOKENS, **job.request
        )
        tell()
        text = answer.choices[0].message.content
        return TASKS[job.task].is_right(text, job.example.answer)

    async with client:
        return await gather_all(ask, jobs, AT_ONCE)
