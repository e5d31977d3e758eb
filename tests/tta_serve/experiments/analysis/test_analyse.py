"""Analyses of logs whose truth is known, and against the same figures from raw rows."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare, norm

from tests.factories.experiment_logs import HOUR, coin, definition, rows, store
from tests.factories.exposures import exposure
from tta_serve.experiments.analysis.analyse import analyse
from tta_serve.experiments.analysis.formatting import format_number
from tta_serve.experiments.analysis.guardrails import one_sided_test
from tta_serve.experiments.analysis.results import Comparison, Report
from tta_serve.experiments.design.assignment import Request, RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.statistics.moments import Moments
from tta_serve.experiments.statistics.sequential import PRIOR_MISSES, Sequential, pad_range
from tta_serve.store.database import Database
from tta_serve.store.records import Exposure, Outcome, Span

NOW = 1200 * HOUR
SPAN = Span("routing")


def report(db: Database, d: Definition, **more: Any) -> Report:
    return analyse(db, d, SPAN, NOW, **{"looks": 1, **more})


def primary(found: Report) -> Mapping[str, Comparison]:
    return {comparison.arm: comparison for comparison in found.metrics[0].comparisons}


def units_means(seen: list[Exposure], judged: list[Outcome]) -> dict[str, list[float]]:
    """Return every unit's mean, by arm."""
    outcomes = {outcome.request_id: outcome.value for outcome in judged}
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in seen:
        values[row.arm, row.unit].append(outcomes[row.request_id])
    found: dict[str, list[float]] = defaultdict(list)
    for (arm, _), own in values.items():
        found[arm].append(float(np.mean(own)))
    return found


def test_the_right_arm_wins_with_the_figures_of_the_raw_rows(db: Database) -> None:
    d = definition(
        "base", "gate", "uniform", metrics={"secondary": [{"name": "total_ms", "better": "lower"}]}
    )
    seen, judged = rows(
        RunningExperiment(d, 1), range(1500), coin(base=0.5, gate=0.65, uniform=0.5)
    )
    store(db, seen, judged)
    found = report(db, d)
    means = {
        arm: pad_range(Moments.of(values), 1) for arm, values in units_means(seen, judged).items()
    }
    test = Sequential(d.target, d.alpha / 4)
    for arm, comparison in primary(found).items():
        wanted = test.difference(means["base"], means[arm])
        assert comparison.difference is not None
        assert tuple(asdict(comparison.difference).values()) == pytest.approx(
            (wanted.estimate, wanted.low, wanted.high)
        )
        assert comparison.p == pytest.approx(wanted.p)
    assert primary(found)["gate"].p_holm == pytest.approx(4 * primary(found)["gate"].p)
    assert {arm: c.reading for arm, c in primary(found).items()} == {
        "gate": "better",
        "uniform": "undecided",
    }
    alone = Sequential(d.target, d.alpha).mean(means["gate"])
    gate = found.metrics[0].arms[1]
    assert (gate.units, gate.requests, gate.values) == (
        means["gate"].n,
        *2 * (sum(row.arm == "gate" for row in seen),),
    )
    assert gate.mean is not None
    assert (gate.mean.low, gate.mean.high) == pytest.approx((alone.low, alone.high))
    assert found.verdict.winner == "gate"
    assert found.verdict.words[0] == "The winner is gate."
    assert any(
        word.startswith("uniform is not surely different from base") for word in found.verdict.words
    )
    assert found.split.p is not None
    assert found.split.p > 0.001
    assert [(arm.units, arm.share) for arm in found.arms] == [
        (means[arm].n, 1 / 3) for arm in ("base", "gate", "uniform")
    ]


def test_relative_differences_are_those_of_the_delta_method(db: Database) -> None:
    d = definition("base", "gate", kind="mean", target=400)
    seen, judged = rows(
        RunningExperiment(d, 1),
        range(800),
        lambda rng, arm, _: rng.gamma(4, 25 if arm == "base" else 30),
    )
    store(db, seen, judged)
    comparison, means = primary(report(db, d))["gate"], units_means(seen, judged)
    base, gate = (np.array(means[arm]) for arm in ("base", "gate"))
    ratio = gate.mean() / base.mean()
    error = (
        np.sqrt(gate.var(ddof=1) / len(gate) + ratio**2 * base.var(ddof=1) / len(base))
        / base.mean()
    )
    half = error * Sequential(400, d.alpha).boundary(2 / (1 / len(base) + 1 / len(gate)))
    assert comparison.relative is not None
    assert tuple(asdict(comparison.relative).values()) == pytest.approx(
        (ratio - 1, ratio - 1 - half, ratio - 1 + half)
    )
    assert comparison.relative.low == pytest.approx(0.2, abs=0.12)
    store(
        db,
        *rows(
            RunningExperiment(definition("base", "gate", name="odd"), 1),
            range(800),
            lambda rng, *_: rng.normal(),
            tag="s",
        ),
    )
    near_zero = analyse(
        db, definition("base", "gate", name="odd", kind="mean"), Span("odd"), NOW, looks=1
    )
    assert primary(near_zero)["gate"].relative is None


def test_equal_arms_have_no_winner_at_any_look(db: Database) -> None:
    d = definition("base", "gate")
    store(db, *rows(RunningExperiment(d, 1), range(2000), coin(base=0.6, gate=0.6), seed=3))
    found = report(db, d, looks=30)
    assert found.verdict.winner is None
    assert found.verdict.words[0] == "Undecided."
    assert "units per arm would find a true difference like today's" in found.verdict.missing[0]
    assert len(found.looks) == 30
    known = [
        look.difference
        for look in found.looks
        if look.difference.low is not None and look.difference.high is not None
    ]
    assert all(gap.low < 0 < gap.high for gap in known)  # type: ignore[operator]
    assert len(known) > 20


def test_what_is_missing_is_what_it_takes(db: Database) -> None:
    """With as many units as the report asks for, four of five experiments find a difference."""
    d, wins = definition("base", "gate", target=500), 0
    store(
        db,
        *rows(RunningExperiment(d, 1), range(600), coin(base=0.5, gate=0.54), requests=1, seed=2),
    )
    comparison = primary(report(db, d))["gate"]
    assert comparison.reading == "undecided"
    assert comparison.needed is not None
    difference = comparison.difference
    assert difference is not None
    assert comparison.detectable is not None
    rng, test = np.random.default_rng(0), Sequential(500, d.alpha)
    for _ in range(200):
        draws = [
            np.cumsum(rng.random(comparison.needed) < rate)
            for rate in (0.5, 0.5 + difference.value)
        ]
        n = np.arange(1, comparison.needed + 1)
        means = [draw / n for draw in draws]
        variance = sum(m * (1 - m) for m in means) + 2 * PRIOR_MISSES / n
        z = (means[1] - means[0]) / np.sqrt(variance / n)
        wins += bool((z[test.burn_in :] > test.boundary(n[test.burn_in :].astype(float))).any())
    assert wins / 200 == pytest.approx(0.8, abs=0.09)


def test_the_looks_are_what_could_be_known_then(db: Database, tmp_path: Any) -> None:
    d = definition("base", "gate", "uniform")
    seen, judged = rows(RunningExperiment(d, 1), range(900), coin(base=0.5, gate=0.7, uniform=0.4))
    store(db, seen, judged)
    found = report(db, d, looks=10)
    assert [look.difference for look in found.looks[-2:]] == [
        c.difference for c in primary(found).values()
    ]
    end = found.looks[9].time
    then = Database(f"sqlite:///{tmp_path}/then.db")
    known = {outcome.request_id for outcome in judged if outcome.time <= end}
    store(
        then,
        [row for row in seen if row.request_id in known],
        [o for o in judged if o.request_id in known],
    )
    assert {c.difference for c in primary(report(then, d)).values()} == {
        look.difference for look in found.looks[8:10]
    }
    then.close()


def test_a_control_that_is_better_stays(db: Database) -> None:
    d = definition(
        "base",
        "gate",
        "uniform",
        metrics={"primary": {"name": "score", "kind": "share", "better": "lower"}},
    )
    store(db, *rows(RunningExperiment(d, 1), range(1500), coin(base=0.3, gate=0.5, uniform=0.6)))
    found = report(db, d)
    assert {c.reading for c in primary(found).values()} == {"worse"}
    assert found.verdict.winner == "base"


def test_of_two_better_arms_the_best_wins_and_equals_are_named(db: Database) -> None:
    d = definition("base", "gate", "retrieval", "uniform", target=400)
    store(
        db,
        *rows(
            RunningExperiment(d, 1),
            range(2000),
            coin(base=0.3, gate=0.6, retrieval=0.62, uniform=0.9),
        ),
    )
    found = report(db, d)
    assert {c.reading for c in primary(found).values()} == {"better"}
    assert found.verdict.winner == "uniform"
    assert not any("too" in word for word in found.verdict.words)
    without = report(db, d, stopped=["uniform"])
    assert without.verdict.winner in ("gate", "retrieval")
    other = {"gate": "retrieval", "retrieval": "gate"}[without.verdict.winner or ""]
    said = f"{other} is better than base too, and not surely worse than {without.verdict.winner}."
    assert without.verdict.words[-1] == said


@pytest.mark.parametrize(("tolerated", "breached"), [(50.0, True), (130.0, False)])
def test_a_breached_guardrail_is_found_and_does_not_win(
    db: Database, tolerated: float, breached: bool
) -> None:
    rails = [{"name": "total_ms", "better": "lower", "tolerated": tolerated}]
    d = definition("base", "gate", metrics={"guardrails": rails})
    seen, judged = rows(RunningExperiment(d, 1), range(700), coin(base=0.4, gate=0.9))
    rng = np.random.default_rng(0)
    slow = [
        exposure(
            **{**vars(row), "total_ms": rng.gamma(9, 200 / 9 if row.arm == "gate" else 100 / 9)}
        )
        for row in seen
    ]
    store(db, slow, judged)
    found = report(db, d)
    (guard,) = found.guardrails
    assert guard.breached == breached
    assert guard.worse_by.value == pytest.approx(100, abs=10)
    assert guard.worse_by.low is not None
    assert 70 < guard.worse_by.low < guard.worse_by.value
    assert guard.worse_by.high is None
    assert found.verdict.winner == ("base" if breached else "gate")
    worse, low = format_number(guard.worse_by.value), format_number(guard.worse_by.low)
    sure = f"by {worse}, surely by more than {low}, where 50 is tolerated"
    assert guard.why == (f"total_ms: gate is worse than base {sure}" if breached else "")
    assert (f"{guard.why}." in found.verdict.words) == breached


def test_the_best_of_what_breaches_nothing_wins(db: Database) -> None:
    d = definition(
        "base",
        "gate",
        "retrieval",
        metrics={"guardrails": [{"name": "error", "better": "lower", "tolerated": 0.05}]},
    )
    seen, judged = rows(
        RunningExperiment(d, 1), range(900), coin(base=0.3, gate=0.9, retrieval=0.6)
    )
    store(
        db,
        [
            exposure(**{**vars(row), "outcome": "error" if row.arm == "gate" else "ok"})
            for row in seen
        ],
        judged,
    )
    found = report(db, d)
    assert {c.reading for c in primary(found).values()} == {"better"}
    assert [guard.arm for guard in found.guardrails if guard.breached] == ["gate"]
    assert found.verdict.winner == "retrieval"


def test_a_guardrail_where_more_is_better_looks_the_other_way(db: Database) -> None:
    rails = [{"name": "kept", "kind": "share", "better": "higher", "tolerated": 0.1}]
    d = definition("base", "gate", "uniform", metrics={"guardrails": rails})
    seen, judged = rows(RunningExperiment(d, 1), range(900), coin(base=0.5, gate=0.5, uniform=0.5))
    rng, rates = np.random.default_rng(0), {"base": 0.6, "gate": 0.3, "uniform": 0.95}
    store(
        db,
        seen,
        [
            *judged,
            *(
                Outcome(r.request_id, "kept", float(rng.random() < rates[r.arm]), r.time)
                for r in seen
            ),
        ],
    )
    found = {guard.arm: guard for guard in report(db, d).guardrails}
    assert {arm: guard.breached for arm, guard in found.items()} == {"gate": True, "uniform": False}
    assert found["uniform"].worse_by.value == pytest.approx(-0.35, abs=0.05)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_a_one_sided_bound_is_within_that_of_the_half_normal_mixture(alpha: float) -> None:
    """At the test's boundary the mixture over effects of one sign is 1 / alpha or little more."""
    test = one_sided_test(definition("base", "gate", alpha=alpha))
    units = np.geomspace(1, 1e6, 200)
    r = test.rho2 * units
    x = test.boundary(units) * np.sqrt(r / (1 + r))
    mixture = 2 * norm.cdf(x) * np.exp(x**2 / 2) / np.sqrt(1 + r)
    assert (mixture >= 1 / alpha).all()
    assert mixture.min() < 1.2 / alpha


def test_lost_rows_are_noticed(db: Database) -> None:
    d = definition("base", "gate", "uniform", weights={"base": 2, "gate": 1, "uniform": 1})
    seen, judged = rows(RunningExperiment(d, 1), range(2000), coin(base=0.3, gate=0.9, uniform=0.3))
    kept = [row for row in seen if row.arm != "gate" or int(row.unit, 16) % 4]
    store(db, kept, judged)
    found = report(db, d)
    counts = [
        len({row.unit for row in kept if row.arm == arm}) for arm in ("base", "gate", "uniform")
    ]
    assert found.split.p == pytest.approx(
        chisquare(counts, np.array([0.5, 0.25, 0.25]) * sum(counts)).pvalue
    )
    assert found.split.alert
    assert found.verdict.winner is None
    assert "not split as they should be" in found.verdict.words[0]
    assert found.health[0].startswith("Split: NOT as it should be")
    store(db, seen, [])
    assert report(db, d).verdict.winner == "gate"


def test_units_of_a_stopped_arm_are_left_out_and_said(db: Database) -> None:
    d = definition("base", "gate", "uniform", "bad")
    worth = coin(base=0.5, gate=0.7, uniform=0.5, bad=0.1)
    first = rows(RunningExperiment(d, 2), range(1600), worth, tag="a")
    then = rows(
        RunningExperiment(d, 3, stopped=["bad"]),
        range(800, 2400),
        worth,
        tag="b",
        start=1100 * HOUR,
    )
    store(db, [*first[0], *then[0]], [*first[1], *then[1]])
    found = report(db, d, stopped=["bad"])
    arms: dict[str, set[str]] = defaultdict(set)
    for row in (*first[0], *then[0]):
        arms[row.unit].add(row.arm)
    assert found.tainted == sum(len(seen) > 1 for seen in arms.values()) > 100
    assert [arm.units for arm in found.metrics[0].arms] == [
        sum(seen == {arm} for seen in arms.values()) for arm in ("base", "gate", "uniform", "bad")
    ]
    assert found.split.counts.keys() == {"gate", "uniform"}
    assert found.split.p is not None
    assert found.split.p > 0.001
    assert found.verdict.winner == "gate"
    assert [arm.stopped for arm in found.arms] == [False, False, False, True]
    assert any(line.startswith(f"Two arms: {found.tainted} units") for line in found.health)
    assert any(line.startswith("Stopped: bad.") for line in found.health)
    assert "without bad and the control" in found.health[0]


def test_a_raised_coverage_taints_nobody(db: Database) -> None:
    low, high = definition("base", "gate", coverage=0.4), definition("base", "gate", coverage=0.8)
    takers = [user for user in range(1500) if _takes_part(low, user)]
    more = [user for user in range(1500) if _takes_part(high, user)]
    assert len(takers) < len(more) < 1500
    worth = coin(base=0.5, gate=0.5)
    first = rows(RunningExperiment(low, 2), takers, worth, tag="a")
    then = rows(RunningExperiment(high, 3), more, worth, tag="b")
    store(db, [*first[0], *then[0]], [*first[1], *then[1]])
    found = report(db, high)
    assert found.tainted == 0
    assert sum(arm.units for arm in found.arms) == len(more)


def _takes_part(d: Definition, user: int) -> bool:
    request = Request("r", f"user-{user}", None, "auto", {})
    return RunningExperiment(d, 1).assign(request, 0.0) is not None
