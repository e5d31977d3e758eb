"""Tallies against the same made unit by unit in Python, on both databases."""

import math
import random
from collections import defaultdict
from typing import Any

import pytest

from router.experiments.definition import Metric
from router.experiments.moments import Bivariate, Moments
from tests.tta_serve.experiments.logged import store
from tests.tta_serve.store.made import exposure
from tta_serve.experiments import logs
from tta_serve.experiments.logs import Cell, acted, tally
from tta_serve.store.database import Database
from tta_serve.store.measures import Span
from tta_serve.store.records import Exposure, Outcome

SPAN = Span("routing", 2)
KINDS = ("share", "mean", "total", "ratio")


def _log(seed: int) -> tuple[list[Exposure], dict[str, Outcome]]:
    """Some units see two arms, some have no outcome, some outcomes come late, some experiments and versions are others'."""
    rng = random.Random(seed)
    seen, judged = [], {}
    for i in range(900):
        unit = rng.randrange(120)
        arm = rng.choice(["a", "b"]) if unit < 15 else "ab"[unit % 2]
        experiment, now = rng.choice(["routing", "routing", "warmup"]), 1000 * rng.random()
        version = rng.choice([1, 2, 2, 3])
        seen.append(exposure(request_id=f"{i}", experiment=experiment, version=version, arm=arm, unit=f"u{unit}", time=now))
        if rng.random() < 0.6:
            judged[f"{i}"] = Outcome(f"{i}", "score", rng.choice([0.0, 0.25, 1.0]) + 1.1 * (unit % 9 == 0), now + 200)
    return seen, judged


def _of(kind: str, values: list[float | None]) -> float | tuple[int, float] | None:
    """A unit's outcome, None if it has none."""
    known = [value for value in values if value is not None]
    if kind == "total":
        return sum(known)
    if not known:
        return None
    return (len(known), sum(known)) if kind == "ratio" else sum(known) / len(known)


def _reference(
    seen: list[Exposure], judged: dict[str, Outcome], kind: str, until: float, window: tuple[float, float]
) -> tuple[dict[str, Cell], int]:
    here = [row for row in seen if row.experiment == "routing" and row.version >= 2]
    arms: dict[str, set[str]] = defaultdict(set)
    units: dict[str, list[float | None]] = defaultdict(list)
    for row in here:
        arms[row.unit].add(row.arm)
        known = judged.get(row.request_id)
        if (known.time if known else row.time) <= until:
            units[row.unit].append(known.value if known else None)
    earlier: dict[str, list[float | None]] = defaultdict(list)
    for row in seen:
        if row.experiment != "routing" and window[0] <= row.time < window[1]:
            earlier[row.unit].append(judged[row.request_id].value if row.request_id in judged else None)
    cells = {}
    for arm in "ab":
        own = {unit: values for unit, values in units.items() if arms[unit] == {arm}}
        known = {unit: found for unit, values in own.items() if (found := _of(kind, values)) is not None}
        odd = [unit for unit, found in known.items() if kind == "share" and not 0 <= found <= 1]  # type: ignore[operator]
        pairs, rest = [], []
        for unit in known.keys() - set(odd):
            past = _of(kind, earlier[unit]) if unit in earlier else None
            if kind == "ratio":
                pairs.append(known[unit])
            elif past is not None:
                pairs.append((past, known[unit]))
            else:
                rest.append(known[unit])
        xs, ys = zip(*pairs, strict=True) if pairs else ((), ())  # type: ignore[misc]
        values = [value for own_values in own.values() for value in own_values]
        counts = len(values), sum(value is not None for value in values), len(odd)
        cells[arm] = Cell(Bivariate.of(xs, ys), Moments.of(rest), *counts)  # type: ignore[arg-type]
    return cells, sum(len(found) > 1 for found in arms.values())


def _numbers(cell: Cell) -> list[float]:
    p = cell.pairs
    moments = [m for each in (p.x, p.y, cell.rest) for m in (each.n, each.mean, each.m2)]
    return [*moments, p.co, cell.requests, cell.values, cell.odd]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tally_is_that_of_a_loop_at_every_look(either: Database, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "AT_ONCE", 32)  # several batches
    seen, judged = _log(0)
    store(either, seen, judged.values())
    ends, window = (300.0, 550.0, 1300.0), (100.0, 700.0)
    found = tally(either, SPAN, Metric(name="score", kind=kind), ends, None if kind == "ratio" else window)
    once = tally(either, SPAN, Metric(name="score", kind=kind))
    for look, end in enumerate(ends):
        cells, tainted = _reference(seen, judged, kind, end, window)
        assert found.tainted == tainted > 5
        for arm in "ab":
            assert _numbers(found.at(arm, look)) == pytest.approx(_numbers(cells[arm]), abs=1e-9)
            assert cells[arm].requests > cells[arm].values > 5
    if kind != "ratio":
        assert min(found.at("a").pairs.n, found.at("a").rest.n) > 5
        assert (found.at("a").odd > 0) == (kind == "share")
    plain, _ = _reference(seen, judged, kind, math.inf, (0, 0))
    assert _numbers(once.at("a")) == pytest.approx(_numbers(plain["a"]), abs=1e-9)


def test_units_that_move_count_in_each_arm(either: Database) -> None:
    store(either, *_rows_of({"u1": "aab", "u2": "b"}))
    found = tally(either, Span("routing"), Metric(name="total_ms"), moving=True)
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
    assert acted(either, Span("routing")) == {"a": ("a", 1, 2, 0.0, 1.0), "b": ("b", 2, 2, 0.0, 2.0)}
    assert acted(either, Span("none")) == {}


def test_an_arm_that_nobody_saw_has_an_empty_cell(db: Database) -> None:
    assert tally(db, Span("routing"), Metric(name="score")).at("a") == Cell()
