"""Metrics: bounded, and one exposition for all replicas."""

from prometheus_client.parser import text_string_to_metric_families

from tta_serve import metrics
from tta_serve.metrics import RECENT_REQUESTS, RecentMixes


def test_distinct_mixes_are_counted_over_a_bounded_window() -> None:
    recent = RecentMixes()
    assert [recent.add(m) for m in ("a", "b", "a")] == [1, 2, 2]
    for i in range(5 * RECENT_REQUESTS):
        count = recent.add(f"m{i}")
    assert count == RECENT_REQUESTS == len(recent._order) == len(recent._tally)


def test_replicas_are_told_apart_and_nothing_else_changes() -> None:
    with metrics.count_request() as count:
        count.policy = "retrieval"
    text = metrics.exposition()
    merged = metrics.merge_expositions([("0", text), ("1", text)]).decode()
    before = [f for f in text_string_to_metric_families(text) if not f.name.endswith("_created")]
    after = {f.name: f for f in text_string_to_metric_families(merged)}
    for family in before:
        assert after[family.name].type == family.type
        assert len(after[family.name].samples) == 2 * len(family.samples)
    assert 'tta_requests_total{outcome="ok",policy="retrieval",replica="1"}' in merged
