"""`tta experiment`: offline on a database, and against a server that keeps its experiments as the
real one does.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.factories.experiment_logs import coin, definition, rows, store
from tests.factories.http_handler import serve_handler
from tta_serve.cli.experiment import app
from tta_serve.exceptions import ConfigError, RequestError
from tta_serve.experiments.control.lifecycle import Lifecycle
from tta_serve.experiments.design import planner
from tta_serve.experiments.design.assignment import RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.errors import ExperimentError
from tta_serve.experiments.statistics.moments import AnalysisError
from tta_serve.experiments.statistics.sequential import Sequential
from tta_serve.serving.http.openai_errors import failure_of
from tta_serve.store.database import Database
from tta_serve.store.errors import StoreError

KEY = "secret"
POLICIES = ["base-policy", "gate-policy"]
D = definition("base", "gate")


def tta(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"}
    )


def last(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.output.splitlines()[-1])


@pytest.fixture
def url(db: Database, tmp_path: Path) -> str:
    """A database with an experiment that has run."""
    lifecycle = Lifecycle(db, POLICIES)
    lifecycle.start("routing", lifecycle.create(D)["version"])
    store(db, *rows(RunningExperiment(D, 2), range(800), coin(base=0.4, gate=0.7)))
    return f"sqlite:///{tmp_path}/logs.db"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, D)


def written(folder: Path, d: Definition) -> Path:
    where = folder / f"{d.name}.yaml"
    where.write_text(
        yaml.safe_dump(d.model_dump(mode="json", exclude_unset=True)), encoding="utf-8"
    )
    return where


def test_a_report_is_printed_and_written(url: str, tmp_path: Path) -> None:
    result = tta("report", "routing", "--store", url, "--out", tmp_path / "out")
    found = last(result)
    assert found["winner"] == "gate"
    assert sum(found["units"].values()) == 800
    assert "The winner is gate." in result.output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "report.md",
        "report.json",
        "means.png",
        "difference.png",
    }
    with pytest.raises(ConfigError, match="there is no experiment 'other'; there are: routing"):
        tta("report", "other", "--store", url)
    with pytest.raises(ConfigError, match="cannot be written"):
        tta("report", "routing", "--store", url, "--out", tmp_path / "logs.db")


def test_a_database_is_not_made_by_asking_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no database sqlite:///"):
        tta("report", "routing", "--store", f"sqlite:///{tmp_path}/typo.db")
    assert list(tmp_path.iterdir()) == []


def test_policies_are_replayed(url: str, tmp_path: Path) -> None:
    found = last(tta("replay", "routing", "--store", url, "--arm", "gate"))
    assert found["snips"]["low"] < 0.7 < found["snips"]["high"]
    assert last(tta("replay", "routing", "--store", url, "--policy", "gate-policy")) == found
    weights = tmp_path / "weights.json"
    weights.write_text('{"base": 1, "gate": 1}', encoding="utf-8")
    half = last(tta("replay", "routing", "--store", url, "--weights", weights))
    assert half["ips"]["value"] == pytest.approx(half["served"]["value"])
    assert (
        last(tta("replay", "routing", "--store", url, "--arm", "gate", "--metric", "total_ms"))[
            "ips"
        ]["value"]
        > 1
    )
    result = tta("replay", "routing", "--store", url, "--arm", "gate", "--policy", "gate-policy")
    assert result.exit_code == 2
    assert "give one of --arm" in result.output
    with pytest.raises(AnalysisError, match="no request of 'routing' has a value of 'scores'"):
        tta("replay", "routing", "--store", url, "--arm", "gate", "--metric", "scores")


def test_probabilities_of_part_of_the_decisions_are_said_to_be_that(
    url: str, db: Database, tmp_path: Path
) -> None:
    seen, _ = rows(RunningExperiment(D, 2), range(800), coin(base=0.4, gate=0.7))
    lines = tmp_path / "policy.jsonl"
    lines.write_text(
        "\n".join(
            json.dumps({"request_id": row.request_id, "arms": {"gate": 0.5}}) for row in seen
        ),
        encoding="utf-8",
    )
    result = tta("replay", "routing", "--store", url, "--probabilities", lines)
    assert last(result)["covered"]["high"] < 1
    assert "The log says nothing of the rest of the policy's decisions" in result.output


def test_plans_are_the_planners() -> None:
    found = last(tta("plan", "--rate", 0.6, "--effect", 0.05))
    assert found["fixed"]["units"] == planner.units_needed(
        planner.fixed_design(0.05), planner.Rate(0.6), 0.05
    )
    assert found["sequential"]["units"] == planner.units_needed(
        planner.tuned_design(Sequential(1)), planner.Rate(0.6), 0.05
    )
    several = last(
        tta(
            "plan",
            "--deviation",
            30,
            "--mean",
            120,
            "--units",
            2000,
            "--comparisons",
            3,
            "--target",
            500,
        )
    )
    design = planner.peeking_design(Sequential(500, 0.05 / 3))
    assert several["sequential"]["difference"] == pytest.approx(
        planner.detectable_difference(design, planner.Mean(30), 2000)
    )
    assert several["sequential"]["difference"] > several["fixed"]["difference"]
    assert "%" in tta("plan", "--deviation", 30, "--mean", 120, "--units", 2000).output


@pytest.mark.parametrize(
    "wrong",
    [
        ("--rate", 0.6),
        ("--effect", 0.1),
        ("--rate", 0.6, "--effect", 0.1, "--units", 100),
        ("--rate", 0.6, "--deviation", 1, "--units", 100),
        ("--rate", 0.6, "--mean", 1, "--units", 100),
    ],
)
def test_plans_for_nothing_are_refused(wrong: tuple[object, ...]) -> None:
    assert tta("plan", *wrong).exit_code == 2


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(AnalysisError):
        tta("plan", "--rate", 1.2, "--units", 100)
    with pytest.raises(AnalysisError):
        tta("plan", "--rate", 0.6, "--effect", 0.6)


def test_definitions_are_checked(file: Path, tmp_path: Path) -> None:
    assert last(tta("validate", file)) == {
        "name": "routing",
        "weights": {"base": 0.5, "gate": 0.5},
        "coverage": 1.0,
    }
    config = tmp_path / "serve.yaml"
    config.write_text(
        "model: {id: m, source: s}\nlibrary: {path: .}\ndefault_policy: base\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="has no policy base-policy, gate-policy; it has: base"):
        tta("validate", file, "--config", config)
    file.write_text("name: routing\narms: []\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match="control: Field required"):
        tta("validate", file)
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        tta("validate", file)
    with pytest.raises(ConfigError, match="cannot be read"):
        tta("validate", tmp_path / "none.yaml")


class _Handler(BaseHTTPRequestHandler):
    """The contract of the admin API over the real control and store."""

    lifecycle: Lifecycle
    heard: list[tuple[str, Any]] = []

    def _do(self) -> None:
        try:
            status, found = 200, self._found()
        except (RequestError, StoreError) as error:
            failure = failure_of(error)
            status, found = failure.status, failure.body()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    do_GET = do_PUT = do_POST = do_DELETE = _do

    def _found(self) -> Any:
        where = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        if self.headers["Authorization"] != f"Bearer {KEY}":
            raise RequestError("management wants its own key", status=401)
        lifecycle, asked = (
            self.lifecycle,
            (self.command, *where.path.removeprefix("/admin").strip("/").split("/")),
        )
        match asked:
            case ("POST", "v1", "feedback"):
                self.heard.append((self.headers["Idempotency-Key"], body))
                found: Any = {"metric": body["metric"], "value": body["value"], "time": 0.0}
            case ("PUT" | "DELETE", "kill"):
                found = {"kill": lifecycle.set_kill_switch(body["to"] if body else None, ["half"])}
            case ("GET", "experiments"):
                found = lifecycle.list_all()
            case ("GET", "experiments", name):
                found = lifecycle.show(name)
            case ("PUT", "experiments", _):
                d, dry_run = Definition.parse(body), bool(parse_qs(where.query).get("dry_run"))
                new = self.headers["If-None-Match"] == "*"
                found = (
                    lifecycle.create(d, dry_run=dry_run)
                    if new
                    else lifecycle.change(d, self._expected(), dry_run=dry_run)
                )
            case ("POST", "experiments", name, "start"):
                found = lifecycle.start(name, self._expected())
            case ("POST", "experiments", name, "stop"):
                found = lifecycle.stop(name, self._expected(), (body or {}).get("arm"))
            case _:
                raise RequestError(f"nothing at {where.path}", status=404)
        return found

    def _expected(self) -> int:
        """The version in If-Match, which is written as an ETag is."""
        given = self.headers["If-Match"]
        assert given[0] == given[-1] == '"'
        return int(given[1:-1])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TTA_ADMIN_KEY", KEY)
    monkeypatch.setattr(_Handler, "lifecycle", Lifecycle(db, POLICIES), raising=False)
    with serve_handler(_Handler) as url:
        yield url


def test_an_experiment_from_its_definition_to_its_end(
    server: str, db: Database, file: Path, tmp_path: Path
) -> None:
    dry = tta("create", file, "--url", server, "--dry-run")
    assert last(dry)["version"] == 0
    assert "Nothing was changed." in dry.output
    assert last(tta("list", "--url", server)) == {"experiments": [], "kill": None}
    assert last(tta("create", file, "--url", server))["state"] == "draft"
    assert last(tta("start", "routing", "--url", server))["state"] == "running"
    written(tmp_path, Definition.parse({**D.model_dump(), "stop": 9e9}))
    assert last(tta("change", "routing", file, "--url", server, "--dry-run"))["version"] == 2
    assert last(tta("change", "routing", file, "--url", server))["version"] == 3
    with pytest.raises(ConfigError, match=r"status 412: .* is at version 3, not 2"):
        tta("stop", "routing", "--url", server, "--version", 2)
    stopped = last(tta("stop", "routing", "--url", server, "--arm", "gate", "--version", 3))
    assert list(stopped["stopped_arms"]) == ["gate"]
    shown = tta("show", "routing", "--url", server)
    assert [past["state"] for past in last(shown)["history"]] == [
        "draft",
        "running",
        "running",
        "running",
    ]
    assert "stopped" in shown.output
    assert last(tta("stop", "routing", "--url", server))["state"] == "stopped"
    listed = tta("list", "--url", server)
    assert [one["version"] for one in last(listed)["experiments"]] == [5]
    assert "base 0.500, gate 0.500" in listed.output


def test_the_kill_switch_is_thrown_and_put_back(server: str) -> None:
    assert last(tta("kill", "--url", server))["kill"]["to"] == "base"
    half = tta("kill", "--to", "half", "--url", server)
    assert last(half)["kill"]["to"] == "half"
    assert "The kill switch is on: half answers everybody." in half.output
    assert "half answers everybody" in tta("list", "--url", server).output
    off = tta("kill", "--off", "--url", server)
    assert last(off) == {"kill": None}
    assert "The kill switch is off." in off.output
    with pytest.raises(ConfigError, match="status 400: there is no entry 'none'"):
        tta("kill", "--to", "none", "--url", server)
    assert tta("kill", "--to", "half", "--off", "--url", server).exit_code == 2


def test_feedback_said_twice_has_one_key(server: str) -> None:
    _Handler.heard.clear()
    for value in (0.5, 0.5, 0.25):
        assert last(tta("feedback", "a.1.f", "score", value, "--url", server))["value"] == value
    keys, bodies = zip(*_Handler.heard, strict=True)
    assert keys[0] == keys[1] != keys[2]
    assert bodies[0] == {"request_id": "a.1.f", "metric": "score", "value": 0.5}


def test_without_key_or_server_it_says_what_to_do(
    server: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong, says in (
        ("http://127.0.0.1:9", "no server answers"),
        ("file:///etc", "is http://HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=says):
            tta("list", "--url", wrong)
    assert tta("change", "other", file, "--url", server).exit_code == 2
    monkeypatch.setenv("TTA_ADMIN_KEY", "wrong")
    with pytest.raises(ConfigError, match="refused, status 401: management wants its own key"):
        tta("list", "--url", server)
    monkeypatch.delenv("TTA_ADMIN_KEY")
    with pytest.raises(ConfigError, match="set TTA_ADMIN_KEY"):
        tta("list", "--url", server)


def test_the_command_is_part_of_tta() -> None:
    from tta_serve.cli.main import app as whole

    assert "experiment" in {group.name for group in whole.registered_groups}
