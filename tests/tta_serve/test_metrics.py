"""Metrics: bounded, and one exposition for all replicas."""

import pickle
import time

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.factories.asgi import asked, spoken
from tests.tta_serve.serving.generation.test_merging import TEXT, Desk, body
from tta_serve import metrics
from tta_serve.engine.client.usage import Usage
from tta_serve.metrics import RECENT_REQUESTS, RecentMixes


def test_distinct_mixes_are_counted_over_a_bounded_window() -> None:
    recent = RecentMixes()
    assert [recent.add(m) for m in ("a", "b", "a")] == [1, 2, 2]
    for i in range(5 * RECENT_REQUESTS):
        count = recent.add(f"m{i}")
    assert count == RECENT_REQUESTS == len(recent._order) == len(recent._tally)


def read(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_a_request_took_is_counted_by_policy_and_tenant() -> None:
    usage = Usage(prompt_tokens=30, _tokens={"first": 5, "second": 6})
    for tenant in ("shop", None):
        with metrics.count_request() as count:
            count.policy, count.tenant, count.usage = "counted", tenant, usage
            usage.first = time.perf_counter()
            time.sleep(0.01)
    with metrics.count_request() as count:  # refused before it came to the engine
        count.policy, count.tenant, count.usage, count.value = "counted", "shop", Usage(), "error"
    assert read("tta_tokens_total", policy="counted", kind="prompt") == 60
    assert read("tta_tokens_total", policy="counted", kind="completion") == 22
    assert read("tta_first_token_seconds_count", policy="counted") == 2
    assert read("tta_next_token_seconds_count", policy="counted") == 2
    assert 0.002 <= read("tta_next_token_seconds_sum", policy="counted") < 2, "of ten intervals"
    assert read("tta_tenant_tokens_total", tenant="shop", kind="completion") == 11
    for outcome in ("ok", "error"):
        assert read("tta_tenant_requests_total", tenant="shop", outcome=outcome) == 1


def test_tokens_that_the_prefix_cache_had_are_counted_by_policy() -> None:
    usage = Usage(first=time.perf_counter(), prompt_tokens=30, cached_tokens=16)
    with metrics.count_request() as count:
        count.policy, count.usage = "cached", usage
    assert read("tta_cached_tokens_total", policy="cached") == 16
    assert read("tta_request_seconds_count", policy="cached") == 1


def test_replicas_are_told_apart_and_nothing_else_changes() -> None:
    with metrics.count_request() as count:
        count.policy = "retrieval"
    # Another replica's come from another process.
    other = pickle.loads(pickle.dumps(metrics.collect_families()))
    text = generate_latest(REGISTRY).decode()
    merged = metrics.expose_families([("0", metrics.collect_families()), ("1", other)]).decode()
    before = list(text_string_to_metric_families(text))
    after = {f.name: f for f in text_string_to_metric_families(merged)}
    assert after.keys() == {family.name for family in before}
    for family in before:
        assert after[family.name].type == family.type
        assert len(after[family.name].samples) == 2 * len(family.samples)
    assert 'tta_requests_total{outcome="ok",policy="retrieval",replica="1"}' in merged


def test_the_names_that_clients_make_up_make_no_series() -> None:
    """10,000 of them, wherever a request can have one."""
    desk = Desk()

    def send(round_: str) -> None:
        for i in range(100):
            names = [f"{round_}-{i}-{j}" for j in range(100)]
            headers = {"x-request-id": names[0], "x-session-id": names[1], "x-tenant": names[2]}
            merge = ({"experts": dict.fromkeys(names, 0.1)}, {"policy": names[3]}, None)[i % 3]
            model = "demo" if merge else names[6]
            path = f"/{names[7]}" if i % 7 == 0 else TEXT
            asks = spoken(body("x", merge=merge, user=names[4]) | {"model": model, names[5]: 1})
            got = asked(desk.app, "POST", path, asks, headers=headers)
            assert got.status in (400, 404)

    send("first")
    before = count_series()
    send("second")
    assert count_series() == before


def count_series() -> int:
    families = REGISTRY.collect()
    return sum(len(family.samples) for family in families if family.name.startswith("tta_"))
