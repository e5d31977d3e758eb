"""The parts of training that need no model."""

from __future__ import annotations

from deploy.demo.evaluate import exact_match
from deploy.demo.train import WARMUP, Settings


def test_exact_match_forgives_blanks_around_the_answer_only() -> None:
    assert exact_match(" 12 + 30 = 42\nAnswer: 42\n", "12 + 30 = 42\nAnswer: 42")
    assert not exact_match("12+30 = 42\nAnswer: 42", "12 + 30 = 42\nAnswer: 42")
    assert not exact_match("answer: 42", "Answer: 42")


def test_rate_warms_up_then_falls() -> None:
    settings = Settings("orders", steps=100)
    rates = [settings.rate(step) for step in range(100)]
    assert rates.index(max(rates)) in (WARMUP - 1, WARMUP)
    assert rates[:WARMUP] == sorted(rates[:WARMUP])
    assert rates[WARMUP:] == sorted(rates[WARMUP:], reverse=True)
    assert 0 < rates[-1] < settings.peak / 10
