"""A real Prometheus scrapes the demo: every panel's query finds something, no alert fires."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from deploy.monitoring.panels import DASHBOARDS, WINDOW, Dashboard
from deploy.monitoring.pictures import TimeSpan, ask, draw_dashboard
from tests.conftest import ROOT
from tests.e2e.conftest import Demo
from tests.factories.tools import find_tool
from tta_serve.evaluation.local_server import find_free_port

PANELS = [
    (panel, curve)
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for curve in panel.curves
]
START_S = 60


@pytest.fixture(scope="module")
def prometheus(
    demo: Demo, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Prometheus that has seen the demo answer."""
    folder = tmp_path_factory.mktemp("prometheus")
    shipped = ROOT / "deploy/monitoring"
    config = yaml.safe_load((shipped / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(shipped / "rules.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [demo.url.partition("//")[2]]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{find_free_port()}"
    command = [
        str(find_tool("prometheus")),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_scraped(f"http://{address}", folder / "log")
        _use(client)
        time.sleep(5)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def _use(client: openai.OpenAI) -> None:
    """Let policies decide, some by a probe, one for the base, and mixes answer in turn."""
    for policy in ("inline", "retrieval", "gate"):
        for question in ("What is 3 + 4?", "Write me a long poem about rain."):
            for _ in range(3):
                client.chat.completions.create(
                    model="smollm2",
                    messages=[{"role": "user", "content": question}],
                    max_tokens=4,
                    extra_body={"merge": {"policy": policy}},
                )
    client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is 3 + 4?"}],
        max_tokens=64,
        extra_body={"merge": {"segments": [{"math": 1}, {"triage": 1}]}},
    )


def _wait_until_scraped(url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if _query(url, "up == 1"):
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(
        f"Prometheus scraped nothing:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}"
    )


def _query(url: str, expression: str) -> list[Any]:
    asked = {"query": expression.replace(WINDOW, "1m")}
    answer = httpx.get(f"{url}/api/v1/query", params=asked, timeout=20)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["data"]["result"]
    return found


def test_every_query_of_every_panel_finds_something(prometheus: str) -> None:
    silent = []
    for panel, curve in PANELS:
        rows = _query(prometheus, curve.expression)
        if not rows and not panel.needs:
            silent.append((panel.title, curve.expression))
    assert not silent


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_a_dashboard_is_drawn_from_what_there_is(
    prometheus: str, tmp_path: Path, dashboard: Dashboard
) -> None:
    span = TimeSpan(time.time(), minutes=1)
    file = tmp_path / "picture.png"
    draw_dashboard(dashboard, prometheus, span, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert 5_000 < file.stat().st_size < 300_000
    lines = [
        line
        for panel in dashboard.panels
        for c in panel.curves
        for line in ask(prometheus, c, span)
    ]
    assert all(line.times and -1.001 <= line.times[0] <= 0 for line in lines)  # milliseconds


def test_no_alert_fires_while_all_is_well(prometheus: str) -> None:
    answer = httpx.get(f"{prometheus}/api/v1/rules", timeout=20).json()
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    assert len(alerts) == 13
    assert not [rule["name"] for rule in alerts if rule["state"] == "firing"]
