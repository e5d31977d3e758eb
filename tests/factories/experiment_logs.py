"""Logs of known truth, in a database that is otherwise a server's."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tests.factories.exposures import exposure
from tta_serve.experiments.design.assignment import Request, RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.store import exposures
from tta_serve.store.database import Database
from tta_serve.store.records import Exposure, Outcome
from tta_serve.store.schema import outcomes

HOUR = 3600.0
Worth = Callable[[np.random.Generator, str, int], float]
"""(rng, arm, number of the user) -> outcome"""

GOOD: dict[str, Any] = {
    "name": "gate-or-not",
    "arms": [{"name": "plain", "policy": "base"}, {"name": "gate", "policy": "gate", "weight": 3}],
    "control": "plain",
    "metrics": {"primary": {"name": "score", "kind": "share"}},
}
"""A definition that is as it should be."""


def definition(*arms: str, primary: str = "score", kind: str = "share", **more: Any) -> Definition:
    """Return a definition whose first arm is the control, with equal weights if none are given."""
    weights = more.pop("weights", None) or dict.fromkeys(arms, 1.0)
    said = {
        "name": "routing",
        "arms": [{"name": arm, "policy": f"{arm}-policy", "weight": weights[arm]} for arm in arms],
        "control": arms[0],
        "metrics": {"primary": {"name": primary, "kind": kind}, **more.pop("metrics", {})},
        **more,
    }
    return Definition.parse(said)


def rows(  # noqa: PLR0913 - what a log depends on
    running: RunningExperiment,
    users: Sequence[int],
    worth: Worth,
    *,
    requests: int = 2,
    start: float = 1000 * HOUR,
    spread_s: float = 100 * HOUR,
    seed: int = 1,
    tag: str = "r",
    **columns: Any,
) -> tuple[list[Exposure], list[Outcome]]:
    """Return each user's requests, at random times, as `running` assigns them, and their outcomes.

    Args:
        worth: What a request turns out to be worth.
        requests: How many requests a user makes, on average.
        start: The time of the first one, UTC seconds since 1970.
        spread_s: The seconds from the first to the last one.
        tag: What the requests' ids begin with.
        columns: Other columns of the exposures.
    """
    rng = np.random.default_rng(seed)
    metric = running.definition.metrics.primary.name
    seen, judged = [], []
    for user in users:
        for i in range(rng.integers(1, 2 * requests)):
            request_id, now = f"{tag}-{user}-{i}", start + rng.random() * spread_s
            assigned = running.assign(Request(request_id, f"user-{user}", None, "auto", {}), now)
            assert assigned is not None
            said = {
                **vars(assigned),
                "request_id": request_id,
                "time": now,
                "policy": assigned.policy,
                **columns,
            }
            seen.append(exposure(**said))
            judged.append(
                Outcome(request_id, metric, worth(rng, assigned.arm, user), now + 60 * rng.random())
            )
    return seen, judged


def store(db: Database, seen: Iterable[Exposure], judged: Iterable[Outcome]) -> None:
    """Write exposures and outcomes."""
    exposures.write(db, list(seen))
    said = [vars(outcome) for outcome in judged]
    if said:
        with db.write() as connection:
            connection.execute(db.insert(outcomes), said)


def coin(**rates: float) -> Worth:
    """Return outcomes that are 1 with the arm's rate, else 0."""
    return lambda rng, arm, _: float(rng.random() < rates[arm])
