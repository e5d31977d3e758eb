"""Who gets which arm: as said, always the same, and nobody moved without need."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from scipy.stats import chi2_contingency, chisquare, kstest

from tests.factories.experiment_logs import GOOD
from tta_serve.experiments.design.assignment import (
    Assignment,
    Request,
    RunningExperiment,
    assign,
    hash_unit,
    uniform,
)
from tta_serve.experiments.design.definition import Definition

USERS = [f"user-{i}" for i in range(20_000)]


def running(
    version: int = 1,
    stopped: tuple[str, ...] = (),
    weights: dict[str, float] | None = None,
    **changes: Any,
) -> RunningExperiment:
    return RunningExperiment(Definition.parse({**GOOD, **changes}), version, stopped, weights)


def request(user: str | None, **more: Any) -> Request:
    return Request(
        **{"id": "r", "user": user, "session": None, "model": "m", "headers": {}, **more}
    )


def arms(of: RunningExperiment, now: float = 0.0) -> dict[str, Assignment]:
    found = {user: of.assign(request(user), now) for user in USERS}
    return {user: assigned for user, assigned in found.items() if assigned is not None}


def test_units_are_uniform_and_arms_have_their_shares() -> None:
    assert kstest([uniform("salt", user) for user in USERS], "uniform").pvalue > 0.001
    found = Counter(a.arm for a in arms(running()).values())
    assert (
        chisquare([found["plain"], found["gate"]], [0.25 * len(USERS), 0.75 * len(USERS)]).pvalue
        > 0.001
    )
    one = arms(running())["user-1"]
    assert one.propensity == (0.25 if one.arm == "plain" else 0.75)
    assert one.unit == hash_unit("user-1") != "user-1"


def test_arms_of_two_experiments_are_independent() -> None:
    one, two = arms(running()), arms(running(name="other", layer="other"))
    table = Counter((one[user].arm, two[user].arm) for user in USERS)
    rows = [[table[a, b] for b in ("plain", "gate")] for a in ("plain", "gate")]
    assert chi2_contingency(rows).pvalue > 0.001


def test_more_coverage_moves_nobody() -> None:
    little, more = arms(running(coverage=0.2)), arms(running(coverage=0.7))
    assert len(little) == pytest.approx(0.2 * len(USERS), rel=0.05)
    assert len(more) == pytest.approx(0.7 * len(USERS), rel=0.05)
    assert all(more[user].arm == assigned.arm for user, assigned in little.items())


def test_offsets_divide_a_layer() -> None:
    first, second = arms(running(coverage=0.4)), arms(running(name="b", coverage=0.6, offset=0.4))
    assert not first.keys() & second.keys()
    assert len(first) + len(second) == len(USERS)


def test_the_units_of_a_stopped_arm_get_the_control_and_all_others_stay() -> None:
    before, after = arms(running()), arms(running(stopped=("gate",)))
    assert {a.arm for a in after.values()} == {"plain"}
    assert {a.policy for a in after.values()} == {"base"}
    assert {a.propensity for a in after.values()} == {1.0}
    assert before.keys() == after.keys()
    assert not arms(running(stopped=("plain",)))


def test_a_bandits_weights_are_the_propensities() -> None:
    found = arms(running(weights={"plain": 0.9, "gate": 0.1}))
    assert Counter(a.arm for a in found.values())["plain"] == pytest.approx(
        0.9 * len(USERS), rel=0.02
    )
    assert {(a.arm, a.propensity) for a in found.values()} == {("plain", 0.9), ("gate", 0.1)}


@pytest.mark.parametrize(
    ("eligible", "given", "takes_part"),
    [
        ({"models": ["m"]}, {}, True),
        ({"models": ["auto"]}, {}, False),
        ({"headers": {"X-Cohort": "beta"}}, {"headers": {"x-cohort": "beta"}}, True),
        ({"headers": {"X-Cohort": "beta"}}, {"headers": {"x-cohort": "alpha"}}, False),
        ({"keys": ["staff"]}, {"key": "staff"}, True),
        ({"keys": ["staff"]}, {}, False),
    ],
)
def test_who_is_eligible(eligible: dict[str, Any], given: dict[str, Any], takes_part: bool) -> None:
    assert (running(eligible=eligible).assign(request("u", **given), 0) is not None) == takes_part


def test_units_are_users_sessions_or_requests() -> None:
    by_session, by_request = running(unit="session"), running(unit="request")
    assert running().assign(request(None), 0) is None
    assert by_session.assign(request("u"), 0) is None
    found = by_session.assign(request(None, session="s"), 0)
    assert found is not None
    assert found.unit == hash_unit("s")
    found = by_request.assign(request(None, id="r7"), 0)
    assert found is not None
    assert found.unit == hash_unit("r7")


def test_it_starts_and_stops_in_time() -> None:
    timed = running(start=10, stop=20)
    assert [timed.assign(request("u"), now) is not None for now in (9.9, 10, 19.9, 20)] == [
        False,
        True,
        True,
        False,
    ]


def test_the_first_that_takes_a_request_has_it() -> None:
    one, two = running(coverage=0.5), running(name="two", layer="two")
    found = Counter(a.experiment for user in USERS if (a := assign([one, two], request(user), 0)))
    assert found["gate-or-not"] == pytest.approx(0.5 * len(USERS), rel=0.05)
    assert found.total() == len(USERS)


def test_another_process_assigns_the_same() -> None:
    code = (
        "import json, sys; from tests.tta_serve.experiments.design.test_assignment import *; "
        "found = [running().assign(request(user), 0.0).arm for user in USERS[:200]]; "
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "7"},
    )
    mine = arms(running())
    assert json.loads(done.stdout) == [mine[user].arm for user in USERS[:200]]
