"""Experiments on real servers.

Two replicas agree, a kill switch outlives them, and the demo's experiment runs as a whole.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.e2e.conftest import ADMIN_KEY, Demo, serving
from tests.factories.exposures import read_exposures
from tta_serve.evaluation.local_server import find_free_port
from tta_serve.experiments.control.snapshot import LiveExperiments
from tta_serve.experiments.design.assignment import Request, RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.store.database import Database
from tta_serve.store.records import Span

EXPERIMENT = {
    "arms": [{"name": "plain", "policy": "base"}, {"name": "gate", "policy": "gate", "weight": 2}],
    "control": "plain",
    "metrics": {"primary": {"name": "score", "kind": "share"}},
}
PROMPT = "Order: Ada Lind wants 3 garden lamps at 9 dollars each"
USERS = [f"user-{i}" for i in range(24)]


@contextmanager
def server(base: Path, experts: Path, folder: Path, replicas: int) -> Iterator[Demo]:
    config = folder / "serve.yaml"
    said = {
        "model": {"id": "demo", "source": str(base), "max_model_len": 1024},
        "library": {"path": str(experts), "entries": {"half": {"sql": 0.5}}},
        "policies": {"gate": {"type": "gate", "inline": True}, "probe": {"type": "gate"}},
        "default_policy": "gate",
        "store": {"url": f"sqlite:///{folder}/tta.db"},
        "experiments": {"shadow": {"policy": "probe", "share": 0.5, "generate": 0.5}},
        "server": {"replicas": replicas},
    }
    config.write_text(yaml.safe_dump(said), encoding="utf-8")
    with serving(config, find_free_port(), folder / "log", experts) as demo:
        yield demo


def asked(demo: Demo, users: Sequence[str], model: str = "auto") -> list[dict[str, Any]]:
    """Return what answers say of their mix, one user after the other."""
    client = demo.client()
    found = []
    for user in users:
        answer: Any = client.chat.completions.create(
            model=model,
            user=user,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=4,
            temperature=0,
        )
        found.append(answer.merge)
    return found


def admin(demo: Demo) -> httpx.Client:
    return httpx.Client(
        base_url=demo.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=60
    )


def killed_within(demo: Demo, wanted: str) -> float:
    """Return the seconds until eight answers in a row are the kill switch's or, for "", are not."""
    began = time.monotonic()
    while True:
        start = time.monotonic() - began
        policies = {
            merge["policy"]
            for merge in asked(demo, ["a", "b", "c", "d", "e", "f", "g", "h"], "demo")
        }
        if policies == {"kill"} if wanted else "kill" not in policies:
            return start
        assert start < 30


def test_two_replicas_assign_alike_forget_nothing_and_obey_the_kill_switch(
    base: Path, demo_experts: Path, tmp_path: Path
) -> None:
    definition = Definition.parse({"name": "e", **EXPERIMENT})
    with server(base, demo_experts, tmp_path, 2) as demo, admin(demo) as http:
        _start(http)
        running = RunningExperiment(definition, 2)
        wanted = [running.assign(Request("", user, None, "auto", {}), 0.0) for user in USERS]
        merges = [*asked(demo, USERS), *asked(demo, USERS)]
        for merge, assigned in zip(merges, [*wanted, *wanted], strict=True):
            assert assigned is not None
            assert merge["arm"] == f"e/{assigned.arm}"
            assert merge["policy"] == assigned.policy
        assert asked(demo, ["user-1"], "demo:sql")[0]["arm"] is None
        _check_feedback(http, [merge["request_id"] for merge in merges])
        _check_metrics(http)
        _check_change(http)
        _check_reload(demo, http)
        _check_kill(demo, http)
        _check_log(demo)
    db = Database(f"sqlite:///{tmp_path}/tta.db")
    anew = LiveExperiments(db, ["gate", "probe", "base"], 60)
    rows = list(read_exposures(db, Span("e"), "score"))
    db.close()
    assert anew.snapshot.kill == "half", "what the next server begins with"
    again = anew.assign(Request("", USERS[0], None, "auto", {}))
    assert again is not None
    assert merges[0]["arm"] == f"e/{again.arm}"
    assert len(rows) == len(merges), "a graceful stop loses nothing"
    assert sum(value is not None for _, value in rows) == len(USERS)
    exposure = rows[0][0]
    assert (exposure.prompt_tokens > 10, exposure.completion_tokens, exposure.finish_reason) == (
        True,
        4,
        "length",
    )
    assert exposure.total_ms >= (exposure.ttft_ms or 0) > 0


@pytest.mark.long
def test_a_kill_and_an_arm_outlive_the_server(
    base: Path, demo_experts: Path, tmp_path: Path
) -> None:
    with server(base, demo_experts, tmp_path, 1) as demo, admin(demo) as http:
        _start(http)
        began = asked(demo, USERS[:1])[0]["arm"]
        http.put("/admin/kill", json={"to": "half"}).raise_for_status()
    with server(base, demo_experts, tmp_path, 1) as demo, admin(demo) as http:
        assert asked(demo, ["user-1"])[0]["policy"] == "kill"
        http.delete("/admin/kill").raise_for_status()
        time.sleep(1)
        assert asked(demo, USERS[:1])[0]["arm"] == began


def _start(http: httpx.Client) -> None:
    made = http.put("/admin/experiments/e", json=EXPERIMENT, headers={"if-none-match": "*"})
    seen = {"if-match": made.raise_for_status().headers["etag"]}
    http.post("/admin/experiments/e/start", headers=seen).raise_for_status()
    time.sleep(1.5)


def _check_metrics(http: httpx.Client) -> None:
    """Both replicas have exposed users, and a shadow policy has decided."""
    metrics = http.get("/metrics").text
    took_part = {
        sample.labels["replica"]
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "tta_exposures_total"
    }
    assert took_part == {"0", "1"}
    assert 'tta_shadow_requests_total{found="' in metrics


def _check_log(demo: Demo) -> None:
    """Both replicas have said that they serve, which experiment runs, and what the switch does."""
    serving = {line["process"] for line in demo.lines if line["event"] == "serving"}
    assert len(serving) == 2
    changes = [line for line in demo.lines if line["event"] == "experiments changed"]
    assert {line["process"] for line in changes if line["running"] == {"e": 2}} == serving
    assert {line["process"] for line in changes if line["kill"] == "half"} == serving


def _check_kill(demo: Demo, http: httpx.Client) -> None:
    """The kill switch answers everybody with an entry, pinned requests too, within a second."""
    refused = http.put("/admin/kill", json={"to": "nobody"})
    assert refused.status_code == 400
    assert all(name in refused.text for name in ("base", "half", "learned"))
    http.put("/admin/kill", json={"to": "half"}).raise_for_status()
    time.sleep(1)
    assert killed_within(demo, "kill") < 0.1, "a second is enough"
    last = asked(demo, ["user-1"], "demo:math")[0]
    assert (last["policy"], last["experts"]) == ("kill", {"sql": 0.5})


def _check_change(http: httpx.Client) -> None:
    """An expert leaves both replicas and comes back to both, whichever of them is asked."""

    def served() -> list[dict[str, str]]:
        replicas = http.get("/admin/experts").raise_for_status().json()["replicas"]
        return [replica["experts"] for replica in replicas]

    digest = served()[0]["dates"]
    assert len(served()) == 2
    http.delete("/admin/experts/dates", params={"digest": digest}).raise_for_status()
    assert all("dates" not in experts for experts in served())
    wrong = http.put("/admin/experts/dates", params={"replaces": digest})
    assert wrong.status_code == 404, wrong.text
    http.put("/admin/experts/dates").raise_for_status()
    assert all(experts["dates"] == digest for experts in served())


def _check_reload(demo: Demo, http: httpx.Client) -> None:
    """Both replicas change their config, or neither; what an experiment needs stays."""
    lost = {"policies": {"probe": {"type": "gate"}}, "default_policy": "probe"}
    refused = http.put("/admin/config", json=lost | {"experiments": {"shadow": None}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (409, "policies")
    assert "experiment 'e'" in refused.json()["error"]["message"]

    def versions() -> list[float]:
        return [
            sample.value
            for family in text_string_to_metric_families(http.get("/metrics").text)
            for sample in family.samples
            if sample.name == "tta_config_version"
        ]

    assert versions() == [1, 1]
    entries = {"library": {"entries": {"half": {"sql": 0.5}, "quarter": {"sql": 0.25}}}}
    made = http.put("/admin/config", json=entries).raise_for_status().json()
    assert made == {"version": 2, "changed": ["library.entries.quarter"]}
    assert versions() == [2, 2]
    for merge in asked(demo, USERS[:6], "demo:quarter"):
        assert merge["experts"] == {"sql": 0.25}


def _check_feedback(http: httpx.Client, tickets: Sequence[str]) -> None:
    for ticket in tickets[: len(USERS)]:
        http.post(
            "/v1/feedback", json={"request_id": ticket, "metric": "score", "value": 1}
        ).raise_for_status()
    body = {"request_id": tickets[0], "metric": "score", "value": 1}
    assert http.post("/v1/feedback", json=body).status_code == 200
    assert http.post("/v1/feedback", json={**body, "value": 0}).status_code == 409
    assert http.post("/v1/feedback", json={**body, "request_id": "forged.0.0"}).status_code == 404
    assert http.post("/v1/feedback", json={**body, "metric": "total_ms"}).status_code == 400


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demonstration_names_the_winner_and_stops_the_bad_arm(
    base: Path, tmp_path: Path
) -> None:
    """Fewer users than of `make experiment-demo`: 150 are enough to tell the arms apart."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "deploy.demo", "experiment", "--users", "600"]
    places = ["--out", str(out), "--port", str(find_free_port())]
    done = subprocess.run([*command, *places], check=True, capture_output=True, text=True, cwd=ROOT)

    found = json.loads(done.stdout.splitlines()[-1])
    assert found["winner"] in ("gate", "retrieval")
    assert found["stopped_arms"] == ["slow"]
    assert found["srm_p"] > 0.001
    assert found["users"] == 600
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "slow" in report
    assert all(
        (out / name).stat().st_size > 1000
        for name in ("means.png", "difference.png", "report.json")
    )
