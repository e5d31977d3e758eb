"""The report as files, from an experiment as the server keeps it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from router.experiments.assignment import Running
from router.experiments.definition import Definition
from tests.tta_serve.experiments.logged import coin, definition, rows, store
from tta_serve.experiments.control import Control, weights_key
from tta_serve.experiments.report import as_json, as_markdown, report_of, summary, write
from tta_serve.experiments.results import Estimate
from tta_serve.experiments.words import chance, number, spread
from tta_serve.protocol import RequestError
from tta_serve.store import settings
from tta_serve.store.database import Database

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
    control = Control(db, [arm.policy for arm in d.arms])
    version: int = control.start(d.name, control.create(d)["version"])["version"]
    return version


@pytest.fixture
def running(db: Database) -> Database:
    version = started(db, D)
    assert version == 2
    store(db, *rows(Running(D, version), range(1500), coin(base=0.5, gate=0.65, uniform=0.5)))
    return db


def test_the_report_says_what_was_found(running: Database, tmp_path: Path) -> None:
    found = report_of(running, "routing")
    assert found.verdict.winner == "gate"
    assert found.versions == (2, None)
    write(found, tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / "report.md").read_text()
    gate = found.metrics[0].comparisons[0]
    assert "- The winner is gate.\n" in text
    assert (
        f"gate is better than base in score: {spread(gate.difference, sign=True)}, p {chance(gate.p_holm)} after Holm." in text
    )
    assert f"| {spread(found.metrics[0].arms[1].mean)} | {spread(gate.difference, sign=True)} |" in text
    for title in ("Verdict", "Health", "Arms", "score: primary, a share, higher is better", "Guardrails", "How"):
        assert f"\n## {title}\n" in text
    assert "confidence interval" not in text
    assert "at level 0.9875 (Bonferroni)" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in block.strip().splitlines()}) == 1 for block in tables)
    assert as_markdown(found) == text.replace(_pictures(text), "")


def _pictures(text: str) -> str:
    return text[text.index("![") : text.index("## Arms")]


@pytest.mark.parametrize("name", ["means.png", "difference.png"])
def test_pictures_show_something(running: Database, tmp_path: Path, name: str) -> None:
    write(report_of(running, "routing"), tmp_path)
    assert f"({name})" in (tmp_path / "report.md").read_text()
    drawn = image.imread(tmp_path / name)
    assert min(drawn.shape[:2]) > 150
    assert len(np.unique(drawn.reshape(-1, drawn.shape[2]), axis=0)) > 20


def test_json_is_strict_and_whole(running: Database, tmp_path: Path) -> None:
    found = report_of(running, "routing")
    write(found, tmp_path)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == json.loads(json.dumps(as_json(found), allow_nan=False))
    assert read["verdict"]["winner"] == "gate"
    assert read["metrics"][0]["comparisons"][0]["difference"]["low"] == found.metrics[0].comparisons[0].difference.low  # type: ignore[union-attr]
    assert len(read["looks"]) == 60
    short = summary(found)
    assert {key: short[key] for key in ("winner", "stopped_arms", "tainted", "breached")} == {
        "winner": "gate",
        "stopped_arms": [],
        "tainted": 0,
        "breached": [],
    }
    assert sum(short["units"].values()) == 1500
    json.dumps(short, allow_nan=False)


def test_arms_that_were_stopped_are_known_from_the_store(running: Database) -> None:
    Control(running, ["base-policy", "gate-policy", "uniform-policy"]).stop("routing", 2, "uniform")
    found = report_of(running, "routing")
    assert [arm.stopped for arm in found.arms] == [False, False, True]
    assert found.split.p is None
    assert summary(found)["stopped_arms"] == ["uniform"]


def test_a_bandits_weights_are_those_of_now(db: Database, tmp_path: Path) -> None:
    d = definition("base", "gate", unit="user", bandit={})
    started(db, d)
    settings.put(db, weights_key("routing"), {"base": 0.2, "gate": 0.8})
    store(db, *rows(Running(d, 2), range(400), coin(base=0.5, gate=0.65)))
    found = report_of(db, "routing")
    assert [arm.share for arm in found.arms] == [0.2, 0.8]
    write(found, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "These brackets are confidence intervals, for one look only." in text
    assert not (tmp_path / "difference.png").exists()
    assert summary(found)["primary"] == {}


def test_an_experiment_without_traffic_has_a_report_too(db: Database, tmp_path: Path) -> None:
    started(db, D)
    found = report_of(db, "routing")
    write(found, tmp_path)
    assert "No verdict: score is not known of anybody yet." in (tmp_path / "report.md").read_text()
    json.dumps(as_json(found), allow_nan=False)
    with pytest.raises(RequestError, match="there is no experiment 'other'; there are: routing"):
        report_of(db, "other")


def test_names_do_not_break_tables(running: Database) -> None:
    found = report_of(running, "routing", looks=1)
    odd = replace(found, arms=tuple(replace(arm, policy="a|b") for arm in found.arms))
    assert r"| a\|b |" in as_markdown(odd)


def test_numbers_are_short_and_plain() -> None:
    assert [number(value) for value in (0.0, 0.00041234, 12345.6, -0.5, None)] == ["0", "0.0004123", "12350", "-0.5", ""]
    assert number(0.25, sign=True) == "+0.25"
    assert [chance(p) for p in (1.0, 0.04321, 1e-9)] == ["1.0000", "0.0432", "<0.0001"]
    assert spread(Estimate(0.5, 0.25, 0.75)) == "0.5 (0.25..0.75)"
    assert spread(Estimate(0.5, 0.25, None)) == "0.5 (0.25..)"
    assert spread(Estimate(0.5, None, None)) == "0.5 (no interval yet)"
    assert spread(None) == ""
