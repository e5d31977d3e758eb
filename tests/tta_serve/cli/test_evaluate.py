"""Which arms `tta eval` judges, and on which questions."""

from pathlib import Path

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from tests.conftest import ROOT
from tests.factories.harness import SMALL_TASK
from tta_serve.cli.evaluate import list_wanted, read_questions
from tta_serve.cli.main import app
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError


@pytest.fixture
def demo() -> ServeConfig:
    return load(ROOT / "deploy/demo/serve.yaml", {})


def test_a_quick_evaluation_has_a_gate_and_a_retrieval_beside_the_default(
    demo: ServeConfig,
) -> None:
    quick = list_wanted(demo, "", quick=True, every=False)
    assert quick == ("expert", "merge", "inline", "gate", "retrieval")
    assert list_wanted(demo, "", quick=True, every=True) == ()
    assert list_wanted(demo, "", quick=False, every=False) == ()


def test_arms_that_are_named_are_judged_beside_the_default(demo: ServeConfig) -> None:
    assert list_wanted(demo, "dawin, expert", quick=True, every=False) == (
        "dawin",
        "expert",
        "inline",
    )
    with pytest.raises(ConfigError, match="leave out one of them"):
        list_wanted(demo, "dawin", quick=False, every=True)


def test_questions_are_of_a_suite_of_tasks_or_of_both(tmp_path: Path) -> None:
    suite, task = tmp_path / "suite.jsonl", tmp_path / "task.yaml"
    suite.write_text('{"slice": "mixed", "prompt": "p", "want": "w"}\n', encoding="utf-8")
    task.write_text(SMALL_TASK, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"q": "x", "a": "1"}\n' * 3, encoding="utf-8")
    found = read_questions(suite, [tmp_path], None)
    assert {name: len(own) for name, own in found.groups.items()} == {
        "mixed": 1,
        "benchmarks:small": 3,
    }
    assert list(read_questions(suite, [], None).groups) == ["mixed"]
    assert read_questions(None, [task], 2).groups == {"benchmarks:small": [0, 1]}
    with pytest.raises(BadParameter, match="--limit is of tasks"):
        read_questions(suite, [], 2)


def test_one_source_of_questions_is_needed() -> None:
    result = CliRunner().invoke(app, ["eval", "--config", str(ROOT / "deploy/demo/serve.yaml")])
    assert result.exit_code == 2
    assert "give --suite FILE, --tasks FOLDER_OR_FILE, or both" in " ".join(result.output.split())
