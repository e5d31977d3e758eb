"""Visitors of a running demo: questions one after the other, so that dashboards have data."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx

from deploy.demo.everyday import read_everyday
from deploy.demo.tasks import TASKS

_WAIT_S = 120


def draw_questions(seed: int) -> Iterator[str]:
    """Yield questions without end: of every task, and everyday ones as often as of a task."""
    chance = random.Random(seed)
    everyday = read_everyday("test")
    tasks = [
        [example.prompt for example in task.examples("test", 50, seed)] for task in TASKS.values()
    ]
    while True:
        yield chance.choice(chance.choice([everyday, *tasks]))


def visit(url: str, every_s: float, most: int | None, seed: int = 1) -> int:
    """Ask a server, and return how many answers came; failures are passed over.

    Args:
        url: Of the server.
        every_s: Seconds between an answer and the next question.
        most: After how many questions to end; None for never.
        seed: Of the questions.
    """
    answers = 0
    with httpx.Client(base_url=url, timeout=_WAIT_S) as client:
        for i, question in enumerate(draw_questions(seed), 1):
            body = {
                "model": "auto",
                "max_tokens": 256,
                "messages": [{"role": "user", "content": question}],
            }
            with suppress(httpx.HTTPError):
                answers += client.post("/v1/chat/completions", json=body).is_success
            if i == most:
                return answers
            time.sleep(every_s)
    raise AssertionError
