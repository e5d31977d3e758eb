"""The report as files, from an experiment as the server keeps it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from tests.factories.experiment_logs import coin, definition, rows, store
from tta_serve.experiments.analysis.formatting import format_estimate, format_number, format_p
from tta_serve.experiments.analysis.report import (
    make_report,
    summarise,
    to_json,
    to_markdown,
    write_report,
)
from tta_serve.experiments.analysis.results import Estimate
from tta_serve.experiments.control.lifecycle import Lifecycle
from tta_serve.experiments.design.assignment import RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.experiments.design.stored import weights_key
from tta_serve.store import settings
from tta_serve.store.database import Database
from tta_serve.store.errors import UnknownError

D = definition(
    "base",
    "gate",
    "uniform",
    metrics={
        "secondary": [{"name": "completion_tokens", "kind": "ratio", "better": "lower"}],
        "guardrails": [{"name": "total_ms", "better": "lower", "tolerated": 50}],
    },
)


def started(db: Database, d: Definition) -> int:
    """The version from which it runs."""
    lifecycle = Lifecycle(db, [arm.policy for arm in d.arms])
    version: int = lifecycle.start(d.name, lifecycle.create(d)["version"])["version"]
    return version


@pytest.fixture
def running(db: Database) -> Database:
    version = started(db, D)
    assert version == 2
    store(
        db,
        *rows(RunningExperiment(D, version), range(1500), coin(base=0.5, gate=0.65, uniform=0.5)),
    )
    return db


def test_the_report_says_what_was_found(running: Database, tmp_path: Path) -> None:
    found = make_report(running, "routing")
    assert found.verdict.winner == "gate"
    assert found.versions == (2, None)
    write_report(found, tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / "report.md").read_text(encoding="utf-8")
    gate = found.metrics[0].comparisons[0]
    assert "- The winner is gate.\n" in text
    mean = format_estimate(found.metrics[0].arms[1].mean)
    difference = format_estimate(gate.difference, sign=True)
    p = format_p(gate.p_holm)
    assert f"gate is better than base in score: {difference}, p {p} after Holm." in text
    assert f"| {mean} | {difference} |" in text
    for title in (
        "Verdict",
        "Health",
        "Arms",
        "score: primary, a share, higher is better",
        "Guardrails",
        "How",
    ):
        assert f"\n## {title}\n" in text
    assert "confidence interval" not in text
    assert "at level 0.9875 (Bonferroni)" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert all(
        len({line.count("|") for line in block.strip().splitlines()}) == 1 for block in tables
    )
    assert to_markdown(found) == text.replace(_pictures(text), "")


def _pictures(text: str) -> str:
    return text[text.index("![") : text.index("## Arms")]


@pytest.mark.parametrize("name", ["means.png", "difference.png"])
def test_pictures_show_something(running: Database, tmp_path: Path, name: str) -> None:
    write_report(make_report(running, "routing"), tmp_path)
    assert f"({name})" in (tmp_path / "report.md").read_text(encoding="utf-8")
    drawn = image.imread(tmp_path / name)
    assert min(drawn.shape[:2]) > 150
    assert len(np.unique(drawn.reshape(-1, drawn.shape[2]), axis=0)) > 20


def test_json_is_strict_and_whole(running: Database, tmp_path: Path) -> None:
    found = make_report(running, "routing")
    write_report(found, tmp_path)
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(to_json(found), allow_nan=False))
    assert read["verdict"]["winner"] == "gate"
    difference = found.metrics[0].comparisons[0].difference
    assert difference is not None
    assert read["metrics"][0]["comparisons"][0]["difference"] == asdict(difference)
    assert len(read["looks"]) == 60
    short = summarise(found)
    assert {key: short[key] for key in ("winner", "stopped_arms", "tainted", "breached")} == {
        "winner": "gate",
        "stopped_arms": [],
        "tainted": 0,
        "breached": [],
    }
    assert sum(short["units"].values()) == 1500
    json.dumps(short, allow_nan=False)


def test_arms_that_were_stopped_are_known_from_the_store(running: Database) -> None:
    Lifecycle(running, ["base-policy", "gate-policy", "uniform-policy"]).stop(
        "routing", 2, "uniform"
    )
    found = make_report(running, "routing")
    assert [arm.stopped for arm in found.arms] == [False, False, True]
    assert found.split.p is None
    assert summarise(found)["stopped_arms"] == ["uniform"]


def test_a_bandits_weights_are_those_of_now(db: Database, tmp_path: Path) -> None:
    d = definition("base", "gate", unit="user", bandit={})
    started(db, d)
    settings.put(db, weights_key("routing"), {"base": 0.2, "gate": 0.8})
    store(db, *rows(RunningExperiment(d, 2), range(400), coin(base=0.5, gate=0.65)))
    found = make_report(db, "routing")
    assert [arm.share for arm in found.arms] == [0.2, 0.8]
    write_report(found, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "These brackets are confidence intervals, for one look only." in text
    assert not (tmp_path / "difference.png").exists()
    assert summarise(found)["primary"] == {}


def test_an_experiment_without_traffic_has_a_report_too(db: Database, tmp_path: Path) -> None:
    started(db, D)
    found = make_report(db, "routing")
    write_report(found, tmp_path)
    assert "No verdict: score is not known of anybody yet." in (tmp_path / "report.md").read_text(
        encoding="utf-8"
    )
    json.dumps(to_json(found), allow_nan=False)
    with pytest.raises(UnknownError, match="there is no experiment 'other'; there are: routing"):
        make_report(db, "other")


def test_names_do_not_break_tables(running: Database) -> None:
    found = make_report(running, "routing", looks=1)
    odd = replace(found, arms=tuple(replace(arm, policy="a|b") for arm in found.arms))
    assert r"| a\|b |" in to_markdown(odd)


def test_numbers_are_short_and_plain() -> None:
    assert [format_number(value) for value in (0.0, 0.00041234, 12345.6, -0.5, None)] == [
        "0",
        "0.0004123",
        "12350",
        "-0.5",
        "",
    ]
    assert format_number(0.25, sign=True) == "+0.25"
    assert [format_p(p) for p in (1.0, 0.04321, 1e-9)] == ["1.0000", "0.0432", "<0.0001"]
    assert format_estimate(Estimate(0.5, 0.25, 0.75)) == "0.5 (0.25..0.75)"
    assert format_estimate(Estimate(0.5, 0.25, None)) == "0.5 (0.25..)"
    assert format_estimate(Estimate(0.5, None, None)) == "0.5 (no interval yet)"
    assert format_estimate(None) == ""
