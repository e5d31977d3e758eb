"""Experiments over HTTP: statuses, ETags, and what a server without a store says."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.factories.experiment_logs import GOOD
from tta_serve.config.sections import ServeConfig
from tta_serve.serving.http import openai_errors
from tta_serve.serving.replica.experiments_admin import ControlPlane, experiments_router
from tta_serve.store import tickets
from tta_serve.store.database import Database

PATH = f"/admin/experiments/{GOOD['name']}"
REPLICA = SimpleNamespace(entries=lambda: ["half"])


def _serve(plane: ControlPlane | None) -> TestClient:
    app = FastAPI()
    openai_errors.install(app)
    app.include_router(experiments_router(REPLICA, plane))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    config = ServeConfig.model_validate(
        {
            "model": {"id": "m", "source": "somewhere"},
            "library": {"path": tmp_path, "capacity": {"ranks": 4, "experts": 2}},
            "policies": {"gate": {"type": "gate"}},
            "default_policy": "base",
            "store": {"url": f"sqlite:///{tmp_path}/tta.db"},
            "experiments": {"guard_s": 3600},
        }
    )
    assert config.store is not None
    db = Database(config.store.url)
    yield ControlPlane(config, db, lambda: True)
    db.close()


@pytest.fixture
def client(plane: ControlPlane) -> TestClient:
    return _serve(plane)


def _message(answer: Any) -> str:
    message: str = answer.json()["error"]["message"]
    return message


def test_an_experiment_is_made_changed_started_and_stopped(client: TestClient) -> None:
    assert client.put(PATH, json=GOOD).status_code == 428
    dry = client.put(f"{PATH}?dry_run=true", json=GOOD, headers={"if-none-match": "*"})
    assert (dry.status_code, dry.json()["version"]) == (200, 0)
    made = client.put(PATH, json=GOOD, headers={"if-none-match": "*"})
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    taken = client.put(PATH, json=GOOD, headers={"if-none-match": "*"})
    assert taken.status_code == 409
    changed = client.put(PATH, json={**GOOD, "alpha": 0.01}, headers={"if-match": '"1"'})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    stale = client.post(f"{PATH}/start", headers={"if-match": '"1"'})
    assert stale.status_code == 412
    assert "is at version 2, not 1" in _message(stale)
    started = client.post(f"{PATH}/start", headers={"if-match": '"2"'})
    assert started.json()["state"] == "running"
    stopped = client.post(f"{PATH}/stop", json={"arm": "gate"}, headers={"if-match": '"3"'})
    assert list(stopped.json()["stopped_arms"]) == ["gate"]
    assert len(client.get(PATH).json()["history"]) == 4
    assert client.get(f"{PATH}/report").json()["experiment"] == GOOD["name"]
    report = client.get(f"{PATH}/report?format=markdown")
    assert report.text.startswith(f"# Experiment {GOOD['name']}\n")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"control": "nobody"}, "control 'nobody' is no arm"),
        ({"name": "other"}, "the body names the experiment 'other'"),
        ({"arms": [{"name": "plain", "policy": "base"}, {"name": "x", "policy": "y"}]}, "'y'"),
    ],
)
def test_what_cannot_be_is_a_bad_request(
    client: TestClient, changes: dict[str, Any], says: str
) -> None:
    refused = client.put(PATH, json={**GOOD, **changes}, headers={"if-none-match": "*"})
    assert refused.status_code == 400
    assert says in _message(refused)


def test_what_runs_keeps_what_it_is(client: TestClient) -> None:
    client.put(PATH, json=GOOD, headers={"if-none-match": "*"})
    client.post(f"{PATH}/start", headers={"if-match": '"1"'})
    refused = client.put(PATH, json={**GOOD, "alpha": 0.01}, headers={"if-match": '"2"'})
    assert refused.status_code == 400
    assert "keeps its alpha" in _message(refused)


def test_an_unknown_experiment_is_not_found(client: TestClient) -> None:
    for path in ("/admin/experiments/none", "/admin/experiments/none/report"):
        missing = client.get(path)
        assert missing.status_code == 404
        assert "there is no experiment 'none'; there are: none" in _message(missing)


def test_the_kill_switch_is_thrown_and_put_back(client: TestClient) -> None:
    assert client.get("/admin/kill").json() == {"kill": None}
    assert client.put("/admin/kill", json={"to": "half"}).json()["kill"]["to"] == "half"
    assert client.get("/admin/experiments").json()["kill"]["to"] == "half"
    refused = client.put("/admin/kill", json={"to": "nobody"})
    assert refused.status_code == 400
    assert _message(refused) == "there is no entry 'nobody'; there are: base, half"
    assert client.delete("/admin/kill").json() == {"kill": None}


def test_feedback_is_taken_once(client: TestClient, plane: ControlPlane) -> None:
    def send(ticket: str, value: float) -> int:
        body = {"request_id": ticket, "metric": "score", "value": value}
        return client.post("/v1/feedback", json=body).status_code

    ticket = tickets.issue(plane.secret, "r1", 2e9)
    assert [send(ticket, 1.0), send(ticket, 1.0), send(ticket, 0.0)] == [200, 200, 409]
    assert send("forged.0.0", 1.0) == 404
    assert send(tickets.issue(plane.secret, "r2", 1000.0), 1.0) == 410


def test_without_a_store_it_says_so() -> None:
    client = _serve(None)
    for answer in (
        client.get("/admin/experiments"),
        client.get(f"{PATH}/report"),
        client.post("/v1/feedback", json={"request_id": "a", "metric": "b", "value": 1}),
    ):
        assert answer.status_code == 409
        assert "this server has no store" in _message(answer)
