"""Kinds of metrics, earlier values, bandits, and logs with something missing."""

from typing import Any

import numpy as np
import pytest

from tests.factories.experiment_logs import HOUR, coin, definition, rows, store
from tests.factories.exposures import exposure
from tta_serve.experiments.analysis.analyse import analyse
from tta_serve.experiments.analysis.report import to_markdown
from tta_serve.experiments.analysis.results import Comparison, Report
from tta_serve.experiments.design.assignment import Request, RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.statistics.moments import Moments
from tta_serve.experiments.statistics.sequential import Sequential, pad_range
from tta_serve.store.database import Database
from tta_serve.store.records import Exposure, Outcome, Span

START = 1000 * HOUR


def report(db: Database, d: Definition, **more: Any) -> Report:
    return analyse(db, d, Span("routing"), 1200 * HOUR, looks=1, **more)


def only(found: Report) -> Comparison:
    (comparison,) = found.metrics[0].comparisons
    return comparison


def _half(found: Comparison) -> float:
    gap = found.difference
    assert gap is not None
    assert gap.low is not None
    assert gap.high is not None
    return (gap.high - gap.low) / 2


def _clustered(d: Definition, users: int) -> tuple[list[Exposure], list[Outcome]]:
    """Return logs of which requests are far from independent.

    Few users make most of them, and each has a rate of their own.
    """
    rng, running = np.random.default_rng(4), RunningExperiment(d, 1)
    seen, judged = [], []
    for user in range(users):
        rate, many = rng.beta(1, 1), int(rng.choice([1, 2, 40]))
        for i in range(many):
            assigned = running.assign(Request(f"{user}-{i}", f"u{user}", None, "auto", {}), START)
            assert assigned is not None
            more = 0.2 * (assigned.arm == "gate")
            seen.append(
                exposure(**{**vars(assigned), "request_id": f"{user}-{i}", "time": START + i})
            )
            judged.append(
                Outcome(
                    f"{user}-{i}", "score", float(rng.random() < min(1, rate + more)), START + i
                )
            )
    return seen, judged


def test_a_ratio_has_the_interval_of_its_users_not_of_their_requests(db: Database) -> None:
    d = definition("base", "gate", kind="ratio")
    seen, judged = _clustered(d, 700)
    store(db, seen, judged)
    found, by_arm = only(report(db, d)), {}
    value = {outcome.request_id: outcome.value for outcome in judged}
    for arm in ("base", "gate"):
        own = [row for row in seen if row.arm == arm]
        units = sorted({row.unit for row in own})
        pairs = [
            (len(v), sum(v))
            for u in units
            if (v := [value[r.request_id] for r in own if r.unit == u])
        ]
        counts, sums = np.array(pairs, dtype=float).T
        left_out = (sums.sum() - sums) / (counts.sum() - counts)
        jackknife = (len(units) - 1) / len(units) * ((left_out - left_out.mean()) ** 2).sum()
        by_arm[arm] = (
            sums.sum() / counts.sum(),
            jackknife,
            len(units),
            [value[row.request_id] for row in own],
        )
    assert found.difference is not None
    assert found.difference.value == pytest.approx(by_arm["gate"][0] - by_arm["base"][0])
    error = np.sqrt(by_arm["gate"][1] + by_arm["base"][1])
    boundary = Sequential(d.target, d.alpha).boundary(
        2 / (1 / by_arm["gate"][2] + 1 / by_arm["base"][2])
    )
    assert _half(found) == pytest.approx(error * boundary, rel=0.02)
    naive = np.sqrt(sum(np.var(values, ddof=1) / len(values) for *_, values in by_arm.values()))
    assert error > 2 * naive


def test_a_total_counts_units_without_outcomes_as_nothing(db: Database) -> None:
    d = definition("base", "gate", kind="total")
    seen, judged = rows(
        RunningExperiment(d, 1),
        range(900),
        lambda rng, arm, _: rng.gamma(2, 1 + (arm == "gate")),
        requests=3,
    )
    heard = [outcome for outcome in judged if int(outcome.request_id.split("-")[1]) % 3]
    store(db, seen, heard)
    value = {outcome.request_id: outcome.value for outcome in heard}
    sums: dict[tuple[str, str], float] = {}
    for row in seen:
        sums[row.arm, row.unit] = sums.get((row.arm, row.unit), 0.0) + value.get(
            row.request_id, 0.0
        )
    base, gate = (
        Moments.of(v for (arm, _), v in sums.items() if arm == name) for name in ("base", "gate")
    )
    found = report(db, d)
    wanted = Sequential(d.target, d.alpha).difference(base, gate)
    gap = only(found).difference
    assert gap is not None
    assert (gap.value, gap.low, gap.high) == pytest.approx(
        (wanted.estimate, wanted.low, wanted.high)
    )
    assert base.n + gate.n == 900
    missing = 1 - len(heard) / len(seen)
    assert any(
        line.startswith(f"No score: {100 * missing:.1f} % of the requests (base ")
        for line in found.health
    )


def test_units_whose_mean_is_no_share_are_left_out_and_said(db: Database) -> None:
    d = definition("base", "gate")
    seen, judged = rows(
        RunningExperiment(d, 1),
        range(400),
        lambda rng, _, user: 3.0 if user < 7 else float(rng.random() < 0.5),
    )
    store(db, seen, judged)
    found = report(db, d)
    assert found.metrics[0].odd == 7
    assert sum(arm.units for arm in found.metrics[0].arms) == 393
    assert (
        "score: 7 units are left out, as their mean is not in [0, 1]; is it a `mean`, not a"
        " `share`?" in found.health
    )


@pytest.mark.parametrize("kind", ["mean", "share"])
def test_earlier_values_make_the_interval_narrower(db: Database, kind: Any) -> None:
    """Users differ more from each other than from themselves; a fifth was not there before."""
    plain = definition("base", "gate", kind=kind)
    d = definition("base", "gate", kind=kind, pre_s=200 * HOUR)
    level = np.random.default_rng(9).uniform(0.1, 0.7, 900)

    def worth(rng: np.random.Generator, arm: str, user: int) -> float:
        return float(np.clip(level[user] + 0.1 * (arm == "gate") + rng.normal(0, 0.08), 0, 1))

    warmup = definition("base", "other", name="warmup", kind=kind)
    earlier = rows(
        RunningExperiment(warmup, 1),
        range(180, 900),
        worth,
        start=START - 150 * HOUR,
        tag="b",
        seed=5,
    )
    now = rows(RunningExperiment(d, 1), range(900), worth)
    store(db, *earlier)
    store(db, *now)
    without, found = report(db, plain), report(db, d)
    base, gate = (pad_range(arm, float(kind == "share")) for arm in _regressed(earlier, now))
    wanted, gap = Sequential(d.target, d.alpha).difference(base, gate), only(found).difference
    assert gap is not None
    assert (gap.value, gap.low, gap.high) == pytest.approx(
        (wanted.estimate, wanted.low, wanted.high)
    )
    assert wanted.low < 0.1 < wanted.high
    assert _half(only(found)) < 0.75 * _half(only(without))
    assert found.metrics[0].adjusted.startswith(
        "adjusted by earlier values, which 720 of 900 units have"
    )
    assert without.metrics[0].adjusted == ""


def _regressed(
    earlier: tuple[list[Exposure], list[Outcome]], now: tuple[list[Exposure], list[Outcome]]
) -> list[Moments]:
    """Return outcomes less what earlier values explain of them, by least squares on both."""
    past = {unit: mean for (_, unit), mean in _means(*earlier).items()}
    units = list(_means(*now).items())
    y = np.array([mean for _, mean in units])
    x = np.array([past.get(unit, np.nan) for (_, unit), _ in units])
    gate = np.array([arm == "gate" for (arm, _), _ in units])
    known = ~np.isnan(x)
    design = np.stack([gate, ~gate, x]).T[known].astype(float)
    slope = np.linalg.lstsq(design, y[known], rcond=None)[0][2]
    adjusted = np.where(known, y - slope * (x - x[known].mean()), y)
    return [Moments.of(adjusted[~gate]), Moments.of(adjusted[gate])]


def _means(seen: list[Exposure], judged: list[Outcome]) -> dict[tuple[str, str], float]:
    value = {outcome.request_id: outcome.value for outcome in judged}
    found: dict[tuple[str, str], list[float]] = {}
    for row in seen:
        found.setdefault((row.arm, row.unit), []).append(value[row.request_id])
    return {key: float(np.mean(values)) for key, values in found.items()}


def test_an_experiments_own_past_and_that_of_other_times_do_not_count(db: Database) -> None:
    """Its arms were the same then, so that its past depends on them."""
    d = definition("base", "gate", kind="mean", pre_s=200 * HOUR)
    other = definition("base", "gate", name="warmup", kind="mean")

    def worth(rng: np.random.Generator, arm: str, user: int) -> float:
        return user % 10 + 5.0 * (arm == "gate") + rng.normal()

    for running, tag, start in (
        (RunningExperiment(d, 1), "own", START - 150 * HOUR),
        (RunningExperiment(other, 1), "early", START - 400 * HOUR),
        (RunningExperiment(other, 1), "late", START + 1 * HOUR),
    ):
        store(db, *rows(running, range(400), worth, start=start, tag=tag))
    store(db, *rows(RunningExperiment(d, 2), range(400), worth))
    found = analyse(db, d, Span("routing", 2), 1200 * HOUR, looks=1)
    assert (
        found.metrics[0].adjusted
        == "not adjusted by earlier values: no unit has a value of the covariate"
    )
    gap = only(found).difference
    assert gap is not None
    assert gap.value == pytest.approx(5, abs=0.7)


def test_a_bandits_arms_are_valued_by_their_propensities(db: Database) -> None:
    """Means are confounded with time, values are not.

    Traffic moves to the better arm while everybody's outcomes rise.
    """
    d = definition("base", "gate", bandit={"explore": 0.1}, unit="request")
    for batch, share in enumerate((0.5, 0.8, 0.9)):
        worth = coin(base=0.2 + 0.25 * batch, gate=0.3 + 0.25 * batch)
        store(db, *_batch(d, batch, {"base": 1 - share, "gate": share}, worth))
    found = report(db, d, weights={"base": 0.1, "gate": 0.9})
    base, gate = (mean.mean for mean in found.metrics[0].arms)
    assert base is not None
    assert gate is not None
    assert gate.value - base.value > 0.17
    values = {arm: value.snips for arm, value in found.values.items()}
    for arm, truth in (("base", 0.45), ("gate", 0.55)):
        value = values[arm]
        assert value is not None
        assert value.low is not None
        assert value.high is not None
        assert value.low < truth < value.high
        assert value.high - value.low < 0.15
    assert found.metrics[0].comparisons == ()
    assert found.split.p is None
    assert found.verdict.winner is None
    assert found.verdict.words == (
        "No verdict: a bandit moves traffic to the better arms, and claims nothing.",
    )
    assert [arm.share for arm in found.arms] == [0.1, 0.9]
    assert any(line.startswith("Bandit: ") for line in found.health)
    assert "## Values" in to_markdown(found)


def _batch(
    d: Definition, batch: int, weights: dict[str, float], worth: Any
) -> tuple[list[Exposure], list[Outcome]]:
    rng, running = np.random.default_rng(batch), RunningExperiment(d, 1, weights=weights)
    seen, judged = [], []
    for i in range(1500):
        request_id, now = f"{batch}-{i}", START + batch * HOUR + i
        assigned = running.assign(Request(request_id, None, None, "auto", {}), now)
        assert assigned is not None
        seen.append(exposure(**{**vars(assigned), "request_id": request_id, "time": now}))
        judged.append(Outcome(request_id, "score", worth(rng, assigned.arm, i), now))
    return seen, judged


def test_nothing_is_claimed_of_nothing(db: Database) -> None:
    d = definition(
        "base",
        "gate",
        metrics={"guardrails": [{"name": "error", "better": "lower", "tolerated": 0}]},
        pre_s=9,
    )
    found = report(db, d)
    assert found.first is None
    assert found.verdict.winner is None
    assert found.verdict.words == ("No verdict: score is not known of anybody yet.",)
    assert found.metrics[0].comparisons[0].difference is None
    assert not any(guard.breached for guard in found.guardrails)
    assert "Fewer than 100 units, so that nothing is claimed: base (0), gate (0)." in found.health
    assert to_markdown(found).startswith("# Experiment routing\n")
    assert report(db, definition("base", "gate", bandit={})).values == {}


def test_few_units_are_not_enough(db: Database) -> None:
    d = definition("base", "gate")
    store(db, *rows(RunningExperiment(d, 1), range(90), coin(base=0.0, gate=1.0)))
    found = report(db, d)
    assert only(found).reading == "undecided"
    least = min(arm.units for arm in found.arms)
    assert found.verdict.missing == (
        f"gate: nothing is claimed before 100 units in each arm; the smaller one has {least}.",
    )
    assert "no interval yet" in to_markdown(found)
