"""Tallies against the same made unit by unit in Python, on both databases."""

import math
import random
from collections import defaultdict
from typing import Any

import pytest

from tests.factories.experiment_logs import store
from tests.factories.exposures import exposure
from tta_serve.experiments.analysis import tallies
from tta_serve.experiments.analysis.tallies import ArmSums, read_traffic, tally_metric
from tta_serve.experiments.design.definition import Metric
from tta_serve.experiments.statistics.moments import Bivariate, Moments
from tta_serve.store.database import Database
from tta_serve.store.records import Exposure, Outcome, Span

SPAN = Span("routing", 2)
KINDS = ("share", "mean", "total", "ratio")


def _log(seed: int) -> tuple[list[Exposure], dict[str, Outcome]]:
    """Return exposures, and outcomes by request.

    Some units see two arms, some have no outcome, some outcomes come late, and some experiments and
    versions are others'.
    """
    rng = random.Random(seed)
    seen, judged = [], {}
    for i in range(900):
        unit = rng.randrange(120)
        arm = rng.choice(["a", "b"]) if unit < 15 else "ab"[unit % 2]
        experiment, now = rng.choice(["routing", "routing", "warmup"]), 1000 * rng.random()
        version = rng.choice([1, 2, 2, 3])
        seen.append(
            exposure(
                request_id=f"{i}",
                experiment=experiment,
                version=version,
                arm=arm,
                unit=f"u{unit}",
                time=now,
            )
        )
        if rng.random() < 0.6:
            judged[f"{i}"] = Outcome(
                f"{i}", "score", rng.choice([0.0, 0.25, 1.0]) + 1.1 * (unit % 9 == 0), now + 200
            )
    return seen, judged


def _of(kind: str, values: list[float | None]) -> float | tuple[int, float] | None:
    """Return a unit's outcome, None if it has none."""
    known = [value for value in values if value is not None]
    if kind == "total":
        return sum(known)
    if not known:
        return None
    return (len(known), sum(known)) if kind == "ratio" else sum(known) / len(known)


def _reference(
    seen: list[Exposure],
    judged: dict[str, Outcome],
    kind: str,
    until: float,
    window: tuple[float, float],
) -> tuple[dict[str, ArmSums], int]:
    here = [row for row in seen if row.experiment == "routing" and row.version >= 2]
    arms: dict[str, set[str]] = defaultdict(set)
    units: dict[str, list[float | None]] = defaultdict(list)
    for row in here:
        arms[row.unit].add(row.arm)
        outcome = judged.get(row.request_id)
        if (outcome.time if outcome else row.time) <= until:
            units[row.unit].append(outcome.value if outcome else None)
    earlier: dict[str, list[float | None]] = defaultdict(list)
    for row in seen:
        if row.experiment != "routing" and window[0] <= row.time < window[1]:
            outcome = judged.get(row.request_id)
            earlier[row.unit].append(outcome.value if outcome else None)
    sums = {}
    for arm in "ab":
        own = {unit: values for unit, values in units.items() if arms[unit] == {arm}}
        sums[arm] = _sum_units(kind, own, earlier)
    return sums, sum(len(found) > 1 for found in arms.values())


def _sum_units(
    kind: str,
    units: dict[str, list[float | None]],
    earlier: dict[str, list[float | None]],
) -> ArmSums:
    """Return the sums of some units, from their values now and before."""
    pairs: list[tuple[float, float]] = []
    rest: list[float] = []
    odd = 0
    for unit, values in units.items():
        found = _of(kind, values)
        past = _of(kind, earlier[unit]) if unit in earlier else None
        if isinstance(found, tuple):
            pairs.append(found)
        elif found is None:
            continue
        elif kind == "share" and not 0 <= found <= 1:
            odd += 1
        elif past is None:
            rest.append(found)
        else:
            assert not isinstance(past, tuple)
            pairs.append((past, found))
    every = [value for values in units.values() for value in values]
    known = sum(value is not None for value in every)
    moments = Bivariate.of([x for x, _ in pairs], [y for _, y in pairs]), Moments.of(rest)
    return ArmSums(*moments, len(every), known, odd)


def _numbers(sums: ArmSums) -> list[float]:
    x, y = sums.pairs.x, sums.pairs.y
    moments = [m for each in (x, y, sums.rest) for m in (each.n, each.mean, each.m2)]
    return [*moments, sums.pairs.co, sums.requests, sums.values, sums.odd]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tally_is_that_of_a_loop_at_every_look(
    either: Database, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "AT_ONCE", 32)  # several batches
    seen, judged = _log(0)
    store(either, seen, judged.values())
    ends, window = (300.0, 550.0, 1300.0), (100.0, 700.0)
    found = tally_metric(
        either, SPAN, Metric(name="score", kind=kind), ends, None if kind == "ratio" else window
    )
    once = tally_metric(either, SPAN, Metric(name="score", kind=kind))
    for look, end in enumerate(ends):
        wanted, tainted = _reference(seen, judged, kind, end, window)
        assert found.tainted == tainted > 5
        for arm in "ab":
            assert _numbers(found.at(arm, look)) == pytest.approx(_numbers(wanted[arm]), abs=1e-9)
            assert wanted[arm].requests > wanted[arm].values > 5
    if kind != "ratio":
        assert min(found.at("a").pairs.n, found.at("a").rest.n) > 5
        assert (found.at("a").odd > 0) == (kind == "share")
    plain, _ = _reference(seen, judged, kind, math.inf, (0, 0))
    assert _numbers(once.at("a")) == pytest.approx(_numbers(plain["a"]), abs=1e-9)


def test_units_that_move_count_in_each_arm(either: Database) -> None:
    store(either, *_rows_of({"u1": "aab", "u2": "b"}))
    found = tally_metric(either, Span("routing"), Metric(name="total_ms"), moving=True)
    assert found.tainted == 0
    assert [found.at(arm).rest.n for arm in "ab"] == [1, 2]
    assert [found.at(arm).requests for arm in "ab"] == [2, 2]


def _rows_of(units: dict[str, str]) -> tuple[list[Exposure], list[Outcome]]:
    return [
        exposure(request_id=f"{unit}-{i}", unit=unit, arm=arm, time=float(i))
        for unit, arms in units.items()
        for i, arm in enumerate(arms)
    ], []


def test_what_acted_is_counted(either: Database) -> None:
    store(either, *_rows_of({"u1": "aab", "u2": "b"}))
    assert read_traffic(either, Span("routing")) == {
        "a": ("a", 1, 2, 0.0, 1.0),
        "b": ("b", 2, 2, 0.0, 2.0),
    }
    assert read_traffic(either, Span("none")) == {}


def test_an_arm_that_nobody_saw_has_empty_sums(db: Database) -> None:
    assert tally_metric(db, Span("routing"), Metric(name="score")).at("a") == ArmSums()
