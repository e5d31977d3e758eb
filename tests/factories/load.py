"""Visitors of a server of the tiny service, and how they fared."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
TOKENS = 100


def body(words: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": words}]
    return {"model": "tiny:small", "messages": messages, "temperature": 0, "max_tokens": 8, **more}


class Load:
    """Visitors who ask without a pause, half of them for streams, while a block runs."""

    def __init__(self, url: str, visitors: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._url = url
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(i,)) for i in range(visitors)]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ends.set()
            for thread in self._threads:
                thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    @property
    def failed(self) -> int:
        return sum(n for outcome, n in self.outcomes.items() if outcome != "answered")

    def _visit(self, visitor: int) -> None:
        with httpx.Client(base_url=self._url, timeout=100) as client:
            asked = 0
            while not self._ends.is_set():
                asked += 1
                began = time.monotonic()
                self.outcomes[self._ask(client, visitor, asked)] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, client: httpx.Client, visitor: int, asked: int) -> str:
        stream = visitor % 2 == 0
        words = f"w{visitor + 5} w{asked % 400 + 5}"
        asks = body(words, max_tokens=TOKENS, ignore_eos=True, stream=stream)
        try:
            answer = client.post(CHAT, json=asks)
        except httpx.HTTPError as error:
            return type(error).__name__
        if answer.status_code == 200:
            if stream and "data: [DONE]" in answer.text and '"error"' not in answer.text:
                return "answered"
            if not stream and answer.json()["usage"]["completion_tokens"] == TOKENS:
                return "answered"
        return f"{answer.status_code}: {answer.text[-200:]}"
