"""Requests, tokens and concurrency by key."""

from contextlib import ExitStack
from typing import Any

import pytest

from tta_serve.config.access import KeyConfig
from tta_serve.engine.client.usage import Usage
from tta_serve.exceptions import RequestError
from tta_serve.serving.access.admission import Budgets
from tta_serve.serving.access.key_ring import ANYBODY, Caller


def make_caller(label: str = "shop", **limits: Any) -> Caller:
    return Caller(label, KeyConfig.model_validate({"sha256": "0" * 64, **limits}))


def spend(budgets: Budgets, caller: Caller, tokens: int = 0) -> None:
    usage = Usage()
    with budgets.admit(caller, usage):
        usage.prompt_tokens = tokens


def assert_refused(budgets: Budgets, caller: Caller, says: str, most_s: int = 120) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        spend(budgets, caller)
    assert refused.value.status == 429
    assert refused.value.headers is not None
    assert 1 <= int(refused.value.headers["retry-after"]) <= most_s


def test_requests_of_a_minute_are_counted_by_key() -> None:
    budgets = Budgets()
    caller = make_caller(requests_per_minute=3)
    for _ in range(3):
        spend(budgets, caller)
    assert_refused(budgets, caller, "'shop' has reached its limit of 3 requests a minute")
    spend(budgets, make_caller("other", requests_per_minute=3))


def test_tokens_are_counted_when_they_are_known() -> None:
    budgets = Budgets()
    caller = make_caller(tokens_per_minute=100)
    spend(budgets, caller, 60)
    spend(budgets, caller, 1_000_000)  # more than is left: nobody knew
    assert_refused(budgets, caller, "100 tokens a minute")


def test_so_many_run_at_once_and_room_comes_back_also_after_errors() -> None:
    budgets = Budgets()
    caller = make_caller(at_once=2)
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(budgets.admit(caller, Usage()))
        assert_refused(budgets, caller, "2 requests at once", 1)
    with pytest.raises(ZeroDivisionError), budgets.admit(caller, Usage()):
        raise ZeroDivisionError
    with budgets.admit(caller, Usage()), budgets.admit(caller, Usage()):
        pass


def test_replicas_share_what_a_key_may_ask() -> None:
    budgets = Budgets(replicas=2)
    caller = make_caller(requests_per_minute=3)
    for _ in range(2):
        spend(budgets, caller)
    assert_refused(budgets, caller, "3 requests a minute")


def test_who_has_no_key_or_no_limit_is_not_counted() -> None:
    budgets = Budgets()
    for caller in (ANYBODY, make_caller()):
        for _ in range(50):
            spend(budgets, caller, 1000)
