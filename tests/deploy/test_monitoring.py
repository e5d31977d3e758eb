"""Alerts by the real promtool, dashboards that are what panels.py says, and a runbook for each."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from deploy.monitoring.catalogue import make_catalogue
from deploy.monitoring.grafana_json import make_dashboard
from deploy.monitoring.panels import DASHBOARDS, Dashboard
from tests.conftest import ROOT
from tests.factories.tools import find_tool
from tta_serve import metrics

FOLDER = ROOT / "deploy/monitoring"
GROUPS = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
TESTS = yaml.safe_load((FOLDER / "rules.test.yml").read_text(encoding="utf-8"))["tests"]
METRIC = re.compile(r"\btta_[a-z_]+")


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(command: tuple[str, ...]) -> None:
    promtool = find_tool("promtool")
    ran = subprocess.run(
        [promtool, *command], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_seen_to_fire_and_has_a_runbook() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    fired = {
        one["alertname"] for test in TESTS for one in test["alert_rule_test"] if one["exp_alerts"]
    }
    for rule in RULES:
        name = rule["alert"]
        assert name in fired
        assert f"\n### {name}\n" in page
        assert rule["annotations"]["runbook"] == f"deploy/monitoring/README.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_dashboards_are_those_that_are_made(dashboard: Dashboard) -> None:
    file = FOLDER / "dashboards" / f"{dashboard.name}.json"
    text = file.read_text(encoding="utf-8")
    assert text == make_dashboard(dashboard), "run: python -m deploy.monitoring"
    page = json.loads(text)
    assert len({panel["title"] for panel in page["panels"]}) == len(dashboard.panels)
    assert f"dashboards/{dashboard.name}.json" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_catalogue_is_what_the_server_declares() -> None:
    page = (FOLDER / "METRICS.md").read_text(encoding="utf-8")
    assert page == make_catalogue(), "run: python -m deploy.monitoring"
    exported = {family.name for family in REGISTRY.collect() if family.name.startswith("tta_")}
    assert exported == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert not [name for name in exported if re.search(f"`{name}`.*\\|  \\|$", page)]


def test_no_metric_of_ours_is_asked_for_that_there_is_not() -> None:
    assert metrics.requests
    known = {
        name
        for family in REGISTRY.collect()
        for name in (
            family.name,
            f"{family.name}_total",
            f"{family.name}_bucket",
            f"{family.name}_count",
        )
    }
    texts = [file.read_text(encoding="utf-8") for file in _list_files()]
    asked = {name for text in texts for name in METRIC.findall(text)}
    assert asked - known == set()
    assert len(asked) > 15


def _list_files() -> list[Path]:
    return [FOLDER / "rules.yml", FOLDER / "rules.test.yml", *FOLDER.glob("dashboards/*.json")]


def test_what_compose_mounts_is_here() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for service in services.values():
        for volume in service["volumes"]:
            assert (FOLDER / volume.partition(":")[0]).exists()
