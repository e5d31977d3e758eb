"""Clients that ask a server without end, and compare every answer with the one that is right."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

TOKENS = 12
CLEAR = 0.02
"""Answers whose two likeliest tokens are closer than this at some place would differ by rounding
from batch to batch."""
_PAUSE_S = 1.0
_TIMEOUT_S = 130.0


@dataclass(frozen=True)
class KnownQuestion:
    """A prompt with a mix, whose answer is known."""

    prompt: str
    experts: dict[str, float]
    answer: str


@dataclass(frozen=True)
class LoadOutcome:
    """What became of a request."""

    began: float
    """Seconds of the monotonic clock."""
    ended: float
    failure: str = ""
    """What failed, empty for an answer."""
    wrong: bool = False
    """Whether the answer is another than the one that is known."""
    ticket: str = ""
    """By which an experiment knows the request."""


class CheckedLoad:
    """Half of its requests name a mix whose answer is known; of the others an experiment decides.

    Args:
        url: The server's address.
        clients: How many ask at once, each one request after the other.
        seed: Of what they ask.
    """

    def __init__(self, url: str, clients: int, seed: int) -> None:
        self._url = url
        self._clients = clients
        self._rng = random.Random(f"faults/{seed}")
        self._questions: list[KnownQuestion] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: list[LoadOutcome] = []

    def learn(self, prompts: list[str], experts: list[str], most: int) -> int:
        """Ask questions alone, and keep those whose answers are clear. Returns how many are."""
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S) as client:
            while len(self._questions) < most:
                names = self._rng.sample(experts, 2)
                mix = {name: self._rng.choice((0.25, 0.5, 0.75, 1.0)) for name in names}
                prompt = self._rng.choice(prompts)
                body = _make_body(prompt, merge={"experts": mix}) | {
                    "logprobs": True,
                    "top_logprobs": 2,
                }
                choice = _post(client, body).raise_for_status().json()["choices"][0]
                if is_clear(choice["logprobs"]["content"]):
                    text = choice["message"]["content"]
                    self._questions.append(KnownQuestion(prompt, mix, text))
        return len(self._questions)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask for as long as the block lasts."""
        threads = [
            threading.Thread(target=self._ask_on, args=(number,), daemon=True)
            for number in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(_TIMEOUT_S)

    def find_last_failure(self, since: float) -> float | None:
        """Return when the last request failed that began after `since`, or ran then."""
        failed = [one.ended for one in self._since(since) if one.failure]
        return max(failed, default=None)

    def count_since(self, since: float, which: Callable[[LoadOutcome], bool]) -> int:
        """Return how many requests that ended after `since` are of a kind."""
        return sum(map(which, self._since(since)))

    def _since(self, since: float) -> list[LoadOutcome]:
        with self._lock:
            return [one for one in self.outcomes if one.ended >= since]

    def _ask_on(self, number: int) -> None:
        rng = random.Random(f"{self._rng.random()}/{number}")
        # Each request has a connection of its own, as the next server is another process.
        unkept = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S, limits=unkept) as client:
            while not self._stop.is_set():
                outcome = self._ask_one(client, rng)
                with self._lock:
                    self.outcomes.append(outcome)
                if outcome.failure:
                    time.sleep(_PAUSE_S)

    def _ask_one(self, client: httpx.Client, rng: random.Random) -> LoadOutcome:
        question = rng.choice(self._questions)
        free = rng.random() < 0.5
        user = f"user-{rng.randrange(64)}"
        more = {"user": user} if free else {"merge": {"experts": question.experts}}
        began = time.monotonic()
        try:
            answer = _post(client, _make_body(question.prompt, **more))
        except httpx.HTTPError as error:
            return LoadOutcome(began, time.monotonic(), type(error).__name__)
        ended = time.monotonic()
        if answer.status_code != 200:
            return LoadOutcome(began, ended, f"status {answer.status_code}")
        found = answer.json()
        if free:
            return LoadOutcome(began, ended, ticket=found["merge"]["request_id"] or "")
        wrong = found["choices"][0]["message"]["content"] != question.answer
        return LoadOutcome(began, ended, wrong=wrong)


def is_clear(tokens: list[dict[str, Any]]) -> bool:
    """Return whether an answer is the same in any batch, by the log-probabilities of its tokens."""
    gaps: list[float] = [
        t["top_logprobs"][0]["logprob"] - t["top_logprobs"][1]["logprob"] for t in tokens
    ]
    return min(gaps) >= CLEAR


def _make_body(prompt: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        **more,
    }


def _post(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    return client.post("/v1/chat/completions", json=body)
