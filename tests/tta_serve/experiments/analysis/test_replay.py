"""Off-policy estimates of logs whose every arm is known.

They are compared with the truth, and with `Replay` of units that draw once.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.factories.experiment_logs import coin, definition, rows, store
from tests.factories.exposures import exposure
from tta_serve.experiments.analysis import replay as module
from tta_serve.experiments.analysis.replay import replay
from tta_serve.experiments.analysis.replay_targets import (
    read_weights,
    target_arm,
    target_by_request,
    target_policy,
    target_weights,
)
from tta_serve.experiments.analysis.results import Estimate
from tta_serve.experiments.design.assignment import RunningExperiment
from tta_serve.experiments.design.definition import Definition, Metric
from tta_serve.experiments.errors import ExperimentError
from tta_serve.experiments.statistics.moments import AnalysisError
from tta_serve.experiments.statistics.offpolicy import Replay
from tta_serve.store.database import Database
from tta_serve.store.records import Exposure, Outcome, Span

SPAN, SCORE = Span("routing"), Metric(name="score", kind="share")
D = definition("base", "gate", "uniform", weights={"base": 2, "gate": 1, "uniform": 1})
RATES = {"base": 0.3, "gate": 0.7, "uniform": 0.5}


@pytest.fixture
def log(either: Database) -> tuple[list[Exposure], list[Outcome]]:
    seen, judged = rows(RunningExperiment(D, 1), range(1200), coin(**RATES))
    store(either, seen, judged)
    return seen, judged


def _triple(found: Estimate | None) -> tuple[float, float, float]:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    "weights", [{"base": 1.0}, {"gate": 1.0}, {"base": 1.0, "gate": 2.0, "uniform": 1.0}]
)
def test_the_truth_is_within_every_interval(either: Database, weights: dict[str, float]) -> None:
    truth = sum(weight * RATES[arm] for arm, weight in weights.items()) / sum(weights.values())
    found = replay(either, SPAN, SCORE, target_weights(D, weights))
    for estimate in (found.ips, found.snips, found.clipped):
        _, low, high = _triple(estimate)
        assert low < truth < high
    _, low, high = _triple(found.covered)
    assert low < 1 < high
    assert found.units == 1200
    _, low, high = _triple(found.served)
    assert low < 0.45 < high


def test_users_enter_once_as_their_mean(
    either: Database, log: tuple[list[Exposure], list[Outcome]]
) -> None:
    seen, judged = log
    value = {outcome.request_id: outcome.value for outcome in judged}
    by_unit: dict[str, tuple[Exposure, list[float]]] = {}
    for row in seen:
        by_unit.setdefault(row.unit, (row, []))[1].append(value[row.request_id])
    p, pi, r = zip(
        *((row.propensity, row.arm == "gate", np.mean(own)) for row, own in by_unit.values()),
        strict=True,
    )
    wanted = Replay.of(p, pi, r, clip=2.0)
    found = replay(either, SPAN, SCORE, target_arm(D, "gate"), alpha=0.1, clip=2.0)
    for estimate, own in (
        (found.ips, wanted.ips(0.1)),
        (found.snips, wanted.snips(0.1)),
        (found.clipped, wanted.bernstein(0.1)),
        (found.covered, wanted.covered(0.1)),
    ):
        assert _triple(estimate) == pytest.approx((own.estimate, own.low, own.high))
    assert found.effective == pytest.approx(wanted.effective)
    assert (found.requests, found.without) == (len(seen), 0)


def test_a_unit_that_was_moved_has_the_mean_of_its_weights(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bandit moves units; the figures are those of a loop, in batches of two units."""
    monkeypatch.setattr(module, "AT_ONCE", 2)
    rng, drawn = np.random.default_rng(0), []
    for i in range(300):
        p = float(rng.choice([0.2, 0.5, 0.9]))
        drawn.append(
            (f"u{i % 70:02}", "gate" if rng.random() < p else "base", p, float(rng.random()))
        )
    log = [
        exposure(
            request_id=f"r{i}",
            unit=unit,
            arm=arm,
            propensity=p if arm == "gate" else 1 - p,
            time=float(i),
        )
        for i, (unit, arm, p, _) in enumerate(drawn)
    ]
    store(db, log, [Outcome(f"r{i}", "score", r, float(i)) for i, (*_, r) in enumerate(drawn)])
    found = replay(db, SPAN, SCORE, target_arm(D, "gate"))
    weights: dict[str, list[tuple[float, float]]] = {}
    for row, (*_, r) in zip(log, drawn, strict=True):
        weights.setdefault(row.unit, []).append(((row.arm == "gate") / row.propensity, r))
    w = np.array([np.mean([w for w, _ in own]) for own in weights.values()])
    wr = np.array([np.mean([w * r for w, r in own]) for own in weights.values()])
    assert found.units == 70
    half = 1.959964 * wr.std(ddof=1) / np.sqrt(70)
    assert _triple(found.ips) == pytest.approx((wr.mean(), wr.mean() - half, wr.mean() + half))
    assert _triple(found.snips)[0] == pytest.approx(wr.sum() / w.sum())
    assert found.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_totals_are_sums_and_requests_without_a_value_count_there_alone(db: Database) -> None:
    log = [
        exposure(request_id=f"r{i}", unit=f"u{i // 3}", arm="gate", propensity=0.5, time=float(i))
        for i in range(9)
    ]
    store(db, log, [Outcome(f"r{i}", "score", 0.5, float(i)) for i in range(4)])
    mean, total = (
        replay(db, SPAN, Metric(name="score", kind=kind), target_arm(D, "gate"))
        for kind in ("mean", "total")
    )
    assert (mean.units, mean.requests, mean.without, mean.ips.value) == (2, 4, 5, 1.0)
    assert (total.units, total.requests, total.without) == (3, 9, 0)
    assert total.served.value == pytest.approx((1.5 + 0.5 + 0) / 3)
    assert total.ips.value == pytest.approx(2 * (1.5 + 0.5 + 0) / 3)
    assert total.clipped is None


@pytest.mark.usefixtures("log")
def test_a_policy_is_all_arms_that_have_it(either: Database) -> None:
    arms = [
        {"name": name, "policy": policy}
        for name, policy in (("base", "b"), ("gate", "g"), ("uniform", "g"))
    ]
    shared = Definition.parse(
        {**D.model_dump(), "arms": [{**a, "weight": D.weights[a["name"]]} for a in arms]}
    )
    assert replay(either, SPAN, SCORE, target_policy(shared, "g")) == replay(
        either, SPAN, SCORE, target_weights(shared, {"gate": 1, "uniform": 1})
    )
    with pytest.raises(
        ExperimentError,
        match="no arm has the policy 'x', so the log says nothing of it; arms have: b, g",
    ):
        target_policy(shared, "x")


def test_each_request_may_have_its_own_probabilities(
    either: Database, log: tuple[list[Exposure], list[Outcome]], tmp_path: Path
) -> None:
    """What does not depend on the request is the same from a file; what is not covered is said."""
    weights = {"base": 0.25, "gate": 0.5, "uniform": 0.25}
    file = _lines(tmp_path, [(row.request_id, weights) for row in log[0]])
    assert replay(either, SPAN, SCORE, target_by_request(D, file)) == replay(
        either, SPAN, SCORE, target_weights(D, weights)
    )
    part = _lines(tmp_path, [(row.request_id, {"gate": 0.6}) for row in log[0]])
    value, low, high = _triple(replay(either, SPAN, SCORE, target_by_request(D, part)).covered)
    assert low < 0.6 < high < 1
    assert value == pytest.approx(0.6, abs=0.08)
    few = _lines(tmp_path, [(row.request_id, {"gate": 0.6}) for row in log[0][1:]])
    with pytest.raises(ExperimentError, match=f"no line for the request '{log[0][0].request_id}'"):
        replay(either, SPAN, SCORE, target_by_request(D, few))


def _lines(folder: Path, probabilities: Sequence[tuple[str, dict[str, float]]]) -> Path:
    file = folder / "policy.jsonl"
    file.write_text(
        "\n".join(json.dumps({"request_id": name, "arms": arms}) for name, arms in probabilities),
        encoding="utf-8",
    )
    return file


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"request_id": "r"}', "line 1: wanted"),
        ('{"request_id": "r", "arms": {"gate": 1.5}}', "line 1: wanted"),
        (
            '{"request_id": "r", "arms": {"none": 1}}',
            "there is no arm none; there are: base, gate, uniform",
        ),
        (
            '{"request_id": "r", "arms": {"gate": 0.7, "base": 0.7}}',
            "line 1: the probabilities are more than 1 together",
        ),
        (
            '{"request_id": "r", "arms": {"gate": 1}}\n{"request_id": "r", "arms": {"gate": 1}}',
            "line 2: a request twice",
        ),
    ],
)
def test_lines_that_mean_nothing_are_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "policy.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(ExperimentError, match=says):
        target_by_request(D, tmp_path / "policy.jsonl")


@pytest.mark.parametrize("text", ["[1]", "{}", '{"base": "1"}', '{"base": true}', "x"])
def test_weights_that_mean_nothing_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "weights.json").write_text(text, encoding="utf-8")
    with pytest.raises(ExperimentError, match="is not JSON such as"):
        read_weights(tmp_path / "weights.json")


def test_weights_of_nobody_are_refused(tmp_path: Path) -> None:
    for wrong in (
        {"base": 0.0},
        {"base": 2.0, "gate": -1.0},
        {"base": float("nan")},
        {"base": float("inf")},
    ):
        with pytest.raises(ExperimentError, match="weights are numbers of 0 and more, not all 0"):
            target_weights(D, wrong)
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_weights(tmp_path / "none.json")
    with pytest.raises(ExperimentError, match="there is no arm best"):
        target_arm(D, "best")


def test_where_nothing_is_known_nothing_is_replayed(db: Database) -> None:
    with pytest.raises(AnalysisError, match="no request of 'routing' has a value of 'score'"):
        replay(db, SPAN, SCORE, target_arm(D, "gate"))
    store(
        db,
        [exposure(request_id="r", arm="base", propensity=0.5)],
        [Outcome("r", "score", 1.0, 0.0)],
    )
    found = replay(db, SPAN, SCORE, target_arm(D, "gate"))
    assert found.snips is None
    assert found.effective == 0
