"""Experiments on real servers: two replicas that agree, a kill switch that outlives them, and the demonstration as a whole."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from router.experiments.assignment import Request, Running
from router.experiments.definition import Definition
from tests.conftest import ROOT
from tests.e2e.conftest import ADMIN_KEY, Demo, free_port, serving
from tta_serve.store.database import Database
from tta_serve.store.measures import Span, logged

EXPERIMENT = {
    "arms": [{"name": "plain", "policy": "base"}, {"name": "gate", "policy": "gate", "weight": 2}],
    "control": "plain",
    "metrics": {"primary": {"name": "score", "kind": "share"}},
}
PROMPT = "Order: customer 4411 wants 3 of 22-B at 9 dollars each"
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
    config.write_text(yaml.safe_dump(said))
    with serving(config, free_port(), folder / "log", experts) as demo:
        yield demo


def asked(demo: Demo, users: Sequence[str], model: str = "auto") -> list[dict[str, Any]]:
    """What answers say of their mix, one user after the other."""
    client = demo.client()
    found = []
    for user in users:
        answer: Any = client.chat.completions.create(
            model=model, user=user, messages=[{"role": "user", "content": PROMPT}], max_tokens=4, temperature=0
        )
        found.append(answer.merge)
    return found


def admin(demo: Demo) -> httpx.Client:
    return httpx.Client(base_url=demo.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=60)


def killed_within(demo: Demo, wanted: str) -> float:
    """Until eight answers in a row, of any replica, are the kill switch's or, for "", are not."""
    began = time.monotonic()
    while True:
        start = time.monotonic() - began
        policies = {merge["policy"] for merge in asked(demo, ["a", "b", "c", "d", "e", "f", "g", "h"], "demo")}
        if policies == {"kill"} if wanted else "kill" not in policies:
            return start
        assert start < 30


def test_two_replicas_assign_alike_forget_nothing_and_obey_the_kill_switch(
    base: Path, demo_experts: Path, tmp_path: Path
) -> None:
    definition = Definition.parse({"name": "e", **EXPERIMENT})
    with server(base, demo_experts, tmp_path, 2) as demo, admin(demo) as http:
        made = http.put("/admin/experiments/e", json=EXPERIMENT, headers={"if-none-match": "*"}).raise_for_status()
        http.post("/admin/experiments/e/start", headers={"if-match": made.headers["etag"]}).raise_for_status()
        time.sleep(1.5)
        running = Running(definition, 2)
        wanted = [running.assign(Request("", user, None, "auto", {}), 0.0) for user in USERS]
        merges = [*asked(demo, USERS), *asked(demo, USERS)]
        for merge, assigned in zip(merges, [*wanted, *wanted], strict=True):
            assert assigned is not None
            assert merge["arm"] == f"e/{assigned.arm}"
            assert merge["policy"] == assigned.policy
        assert asked(demo, ["user-1"], "demo:sql")[0]["arm"] is None
        _check_feedback(http, [merge["request_id"] for merge in merges])
        metrics = http.get("/metrics").text
        served = [line for line in metrics.splitlines() if line.startswith("tta_exposures_total")]
        assert {line.partition('replica="')[2][0] for line in served} == {"0", "1"}, "both replicas took part"
        assert 'tta_shadow_requests_total{found="' in metrics

        _check_change(http)
        refused = http.put("/admin/kill", json={"to": "nobody"})
        assert refused.status_code == 400
        assert all(name in refused.text for name in ("base", "half", "learned"))
        http.put("/admin/kill", json={"to": "half"}).raise_for_status()
        time.sleep(1)
        assert killed_within(demo, "kill") < 0.1, "a second is enough"
        last = asked(demo, ["user-1"], "demo:math")[0]
        assert (last["policy"], last["experts"]) == ("kill", {"sql": 0.5})
    with server(base, demo_experts, tmp_path, 1) as demo, admin(demo) as http:
        assert asked(demo, ["user-1"])[0]["policy"] == "kill", "it survives a restart"
        http.delete("/admin/kill").raise_for_status()
        time.sleep(1)
        assert asked(demo, USERS[:1])[0]["arm"] == merges[0]["arm"]
    db = Database(f"sqlite:///{tmp_path}/tta.db")
    rows = list(logged(db, Span("e"), "score"))
    db.close()
    assert len(rows) == len(merges) + 1, "a graceful stop loses nothing"
    assert sum(value is not None for _, value in rows) == len(USERS)
    exposure = rows[0][0]
    assert (exposure.prompt_tokens > 10, exposure.completion_tokens, exposure.finish_reason) == (True, 4, "length")
    assert exposure.total_ms >= (exposure.ttft_ms or 0) > 0


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


def _check_feedback(http: httpx.Client, tickets: Sequence[str]) -> None:
    for ticket in tickets[: len(USERS)]:
        http.post("/v1/feedback", json={"request_id": ticket, "metric": "score", "value": 1}).raise_for_status()
    body = {"request_id": tickets[0], "metric": "score", "value": 1}
    assert http.post("/v1/feedback", json=body).status_code == 200
    assert http.post("/v1/feedback", json={**body, "value": 0}).status_code == 409
    assert http.post("/v1/feedback", json={**body, "request_id": "forged.0.0"}).status_code == 404
    assert http.post("/v1/feedback", json={**body, "metric": "total_ms"}).status_code == 400


def test_without_a_store_it_says_so(demo: Demo, client: openai.OpenAI) -> None:
    refused = httpx.post(f"{demo.url}/v1/feedback", json={"request_id": "a", "metric": "b", "value": 1})
    assert refused.status_code == 409
    assert "store" in refused.json()["error"]["message"]


@pytest.mark.timeout(900)
def test_the_demonstration_names_the_winner_and_stops_the_bad_arm(base: Path, tmp_path: Path) -> None:
    """With fewer users than `make experiment-demo`: 150 an arm are enough to tell the arms apart."""
    command = [
        str(Path(sys.executable).parent / "tta"),
        "demo",
        "experiment",
        "--users",
        "600",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*command, "--port", str(free_port())], check=True, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["winner"] in ("gate", "retrieval")
    assert found["stopped_arms"] == ["slow"]
    assert found["srm_p"] > 0.001
    assert found["users"] == 600
    report = (tmp_path / "out" / "report.md").read_text()
    assert "slow" in report
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in ("means.png", "difference.png", "report.json"))
