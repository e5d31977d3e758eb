"""Sums of the logs against the same sums made row by row in Python."""

import random
from collections import defaultdict
from typing import Any

import pytest

from tests.factories.exposures import (
    UnitSum,
    count_units,
    exposure,
    number_exposures,
    read_exposures,
    sum_by_unit,
)
from tta_serve.store import exposures, feedback
from tta_serve.store.database import Database
from tta_serve.store.measures import BUILT_IN
from tta_serve.store.records import Exposure, Outcome, Span

SPANS = [
    Span("routing"),
    Span("routing", 2),
    Span("routing", 1, 2),
    Span("routing", 2, 2),
    Span("other"),
    Span("none"),
]
METRICS = [*BUILT_IN, "score", "never"]


def _random_log(seed: int) -> tuple[list[Exposure], list[Outcome]]:
    rng = random.Random(seed)
    rows = [
        exposure(
            request_id=f"r{i}",
            experiment=rng.choice(["routing", "routing", "other"]),
            version=rng.randint(1, 3),
            arm=rng.choice(["control", "gate", "uniform"]),
            unit=rng.choice(["a", "B", "_", "é", "1f", *(f"{n:02x}" for n in range(20))]),
            abstained=rng.random() < 0.3,
            router_ms=rng.random(),
            ttft_ms=rng.choice([None, rng.random() * 50]),
            total_ms=rng.random() * 900,
            completion_tokens=rng.randint(0, 500),
            outcome=rng.choice(["ok", "ok", "error", "client_error", "aborted"]),
            shadow=rng.choice([None, {"uniform": {"sql": rng.random()}}]),
            time=rng.random() * 1e9,
        )
        for i in range(600)
    ]
    judged = [
        Outcome(row.request_id, m, rng.gauss(0, 1), 5.0)
        for row in rows
        for m in ("score", "b")
        if rng.random() < 0.4
    ]
    return rows, [*judged, Outcome("never seen", "score", 9.0, 5.0)]


def _value(row: Exposure, metric: str, outcomes: dict[tuple[str, str], float]) -> float | None:
    if metric in ("error", "abstained"):
        return float(row.outcome == "error" if metric == "error" else row.abstained)
    return vars(row)[metric] if metric in BUILT_IN else outcomes.get((row.request_id, metric))


@pytest.fixture
def log(db: Database) -> tuple[list[Exposure], dict[tuple[str, str], float]]:
    rows, judged = _random_log(0)
    exposures.write(db, rows)
    for outcome in judged:
        feedback.record(db, outcome)
    return rows, {(outcome.request_id, outcome.metric): outcome.value for outcome in judged}


def _within(rows: list[Exposure], span: Span) -> list[Exposure]:
    return [
        r
        for r in rows
        if r.experiment == span.experiment and span.first <= r.version <= (span.last or 99)
    ]


def test_sums_and_rows_are_those_of_a_loop(db: Database, log: Any) -> None:
    rows, outcomes = log
    for span in SPANS:
        wanted = sorted(_within(rows, span), key=lambda row: row.time)
        by_arm: dict[str, set[str]] = defaultdict(set)
        for row in wanted:
            by_arm[row.arm].add(row.unit)
        assert count_units(db, span) == {arm: len(found) for arm, found in by_arm.items()}
        for metric in METRICS:
            assert list(read_exposures(db, span, metric)) == [
                (row, _value(row, metric, outcomes)) for row in wanted
            ]
            values: dict[tuple[str, str], list[float]] = {(row.unit, row.arm): [] for row in wanted}
            for row in wanted:
                value = _value(row, metric, outcomes)
                values[row.unit, row.arm] += [] if value is None else [value]
            found = list(sum_by_unit(db, span, metric))
            assert [(s.unit, s.arm) for s in found] == sorted(values)
            assert [s.n for s in found] == [len(values[s.unit, s.arm]) for s in found]
            assert [s.total for s in found] == pytest.approx(
                [sum(values[s.unit, s.arm]) for s in found]
            )
            assert all(type(s.total) is float and type(s.n) is int for s in found)


def test_a_unit_without_an_outcome_is_there(db: Database) -> None:
    exposures.write(db, [exposure()])
    assert list(sum_by_unit(db, Span("routing"), "score")) == [UnitSum("gate", "5f2d", 0, 0.0)]


def test_a_stream_that_is_left_gives_its_connection_back(db: Database) -> None:
    exposures.write(db, number_exposures(3000))
    for _ in range(30):  # more than the pool has
        stream = read_exposures(db, Span("routing"), "total_ms")
        assert next(stream)[0].request_id == "chatcmpl-000000"
        del stream
    assert len(list(read_exposures(db, Span("routing"), "total_ms"))) == 3000
