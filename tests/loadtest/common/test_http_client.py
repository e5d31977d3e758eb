"""The client of benchmarks: what it sends, when, and the figures that it makes of the answers."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loadtest.common.http_client import (
    FirstTokenClock,
    RequestLoad,
    ask_merges,
    count_fallbacks,
    load,
)
from tests.factories.completions import ENGINE_S, FIRST_S, NEXT_S, serve_completions


def test_each_request_says_its_own() -> None:
    bodies = [{"merge": {"experts": {"sql": i / 10}}} for i in range(4)]
    with serve_completions() as fake:
        load(fake.url, "m", RequestLoad(list("pqrs"), 4, bodies, tokens=2))
    said = {body["prompt"]: body for body in fake.bodies}
    assert [said[prompt]["merge"] for prompt in "pqrs"] == [body["merge"] for body in bodies]
    assert {(body["model"], body["max_tokens"]) for body in fake.bodies} == {("m", 2)}


def test_a_body_may_name_another_model() -> None:
    with serve_completions() as fake:
        load(fake.url, "m", RequestLoad(["p"], 1, [{"model": "mix-3"}], tokens=2))
    assert [body["model"] for body in fake.bodies] == ["mix-3"]


def test_the_figures_are_those_of_the_answers() -> None:
    tokens = 8
    with serve_completions() as fake:
        got = load(fake.url, "m", RequestLoad(["p", "q"], 1, tokens=tokens))
    assert 1e3 * FIRST_S <= got.ttft_ms <= got.ttft_p99_ms < 1000
    assert 1e3 * NEXT_S <= got.itl_ms <= got.itl_p99_ms < 1000
    whole = 1e3 * (FIRST_S + (tokens - 1) * NEXT_S)
    assert whole <= got.e2e_ms <= got.e2e_p99_ms < whole + 1000
    assert got.requests_s <= 1e3 / whole
    assert got.tok_s == pytest.approx(tokens * got.requests_s)
    assert got.goodput_s == pytest.approx(got.requests_s)


def test_a_late_first_token_is_no_good() -> None:
    with serve_completions() as fake:
        fake.first_s = lambda body: 1.1 if body["prompt"] == "late" else FIRST_S
        got = load(fake.url, "m", RequestLoad(["soon", "late"], 1, tokens=2))
    assert got.goodput_s == pytest.approx(got.requests_s / 2)


def test_requests_come_at_their_rate() -> None:
    rate = 20.0
    with serve_completions() as fake:
        fast = load(fake.url, "m", RequestLoad(list("pqrs"), None, tokens=2))
        slow = load(fake.url, "m", RequestLoad(list("tuvw"), None, rate=rate / 4, tokens=2))
    assert slow.requests_s < rate / 4 < fast.requests_s


def record_times(into: list[float]) -> Callable[[dict[str, Any]], float]:
    """Return what keeps when each request came to a server that answers at once."""
    began = time.monotonic()

    def note(body: dict[str, Any]) -> float:
        into.append(time.monotonic() - began)
        return 0.0

    return note


def test_requests_come_at_their_times() -> None:
    due = [0.0, 0.1, 0.4]
    came: list[float] = []
    with serve_completions() as fake:
        fake.first_s = record_times(came)
        load(fake.url, "m", RequestLoad(list("pqr"), None, times=due, tokens=2))
    assert [body["prompt"] for body in fake.bodies] == list("pqr")
    assert all(at >= wanted for at, wanted in zip(came, due, strict=True))


def test_gaps_are_as_the_burstiness_says() -> None:
    rate, shape, seed = 6.0, 0.25, 24
    gaps = np.random.RandomState(seed).gamma(shape, 1 / (rate * shape), 3)
    due = np.cumsum(gaps) * 3 / rate / gaps.sum()
    assert due[0] > 0.4, "nothing for long"
    assert due[-1] == pytest.approx(0.5), "then all together"
    came: list[float] = []
    with serve_completions() as fake:
        fake.first_s = record_times(came)
        sent = RequestLoad(list("pqr"), None, rate=rate, seed=seed, burstiness=shape, tokens=2)
        load(fake.url, "m", sent)
    assert all(at >= wanted for at, wanted in zip(came, due, strict=True))


def test_nobody_waits_until_another_is_answered() -> None:
    slow_s = 0.4
    with serve_completions() as fake:
        fake.first_s = lambda body: slow_s if body["prompt"] == "p" else 0.0
        got = load(fake.url, "m", RequestLoad(list("pqr"), None, times=[0, 0.01, 0.02], tokens=2))
    # This server answers one after the other: all waited for the first, and say so.
    assert got.ttft_ms > 1e3 * slow_s / 2


def test_an_error_ends_the_run() -> None:
    with serve_completions() as fake, pytest.raises(AssertionError, match="Not Found"):
        load(fake.url, "m", RequestLoad(["p", "q"], 2, [{}, {"model": "gone"}], tokens=2))


def test_what_our_server_says_of_itself() -> None:
    with serve_completions() as fake:
        merges = ask_merges(fake.url, ["p", "q"], {"merge": {"policy": "gate"}})
        assert count_fallbacks(fake.url) == 5
    assert [merge["asked"] for merge in merges] == ["p", "q"]
    assert all(body["merge"] == {"policy": "gate"} for body in fake.bodies)


def test_an_engine_says_how_late_its_first_tokens_are() -> None:
    with serve_completions() as fake:
        load(fake.url, "m", RequestLoad(["p"], 1, tokens=2))
        clock = FirstTokenClock(fake.url)
        assert clock.read_mean_ms() is None
        load(fake.url, "m", RequestLoad(["q"], 1, tokens=2))
        assert clock.read_mean_ms() == pytest.approx(1e3 * ENGINE_S)
        assert FirstTokenClock(f"{fake.url}/gone").read_mean_ms() is None
