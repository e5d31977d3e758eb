"""`tta search`: what is wrong is said before a server is started or asked."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.factories.http_handler import serve_handler
from tests.tta_serve.search.test_objectives import Rater
from tta_serve.cli.main import app
from tta_serve.exceptions import ConfigError
from tta_serve.search.errors import SearchError

QUESTIONS = "\n".join(f'{{"prompt": "{n}", "want": "x"}}' for n in range(4))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTA_ADMIN_KEY", "key")
    (tmp_path / "q.jsonl").write_text(QUESTIONS, encoding="utf-8")
    return tmp_path / "q.jsonl"


def run(*words: str) -> str:
    """Return what the command refused with."""
    found = CliRunner().invoke(app, ["search", *words])
    assert found.exit_code != 0
    if isinstance(found.exception, SystemExit):
        return " ".join(re.sub("[│╭╮╰╯─]", " ", found.output).split())
    assert isinstance(found.exception, SearchError | ConfigError), found.exception
    return str(found.exception)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--requests", "9"], "give --config FILE"),
        (["--url", "http://127.0.0.1:1", "--config", "x", "--requests", "9"], "give --config FILE"),
        (["--config", "x.yaml"], "give a budget"),
        (["--config", "x.yaml", "--minutes", "1", "--option", "sigma"], "--option is NAME=VALUE"),
        (["--config", "x.yaml", "--minutes", "1", "--algorithm", "ga"], "no algorithm 'ga'"),
        (["--config", "x.yaml", "--minutes", "1", "--objective", "judge"], "wants --judge-url"),
        (["--config", "x.yaml", "--minutes", "1", "--objective", "best"], "wanted is graded"),
        (["--config", "x.yaml", "--minutes", "1"], "x.yaml"),
        (["--url", "http://127.0.0.1:1", "--minutes", "1"], "start one with `tta serve`"),
        (["--url", "nowhere", "--minutes", "1"], "--url is http://HOST:PORT"),
    ],
)
def test_what_is_wrong_is_said_in_words(file: Path, words: list[str], wanted: str) -> None:
    assert wanted in run(str(file), *words)


def test_too_few_questions_and_other_servers_are_refused(file: Path) -> None:
    one = file.with_name("one.jsonl")
    one.write_text('{"prompt": "a", "want": "x"}', encoding="utf-8")
    assert "two different questions" in run(str(one), "--config", "x.yaml", "--minutes", "1")
    with serve_handler(Rater) as url:
        assert "refused, status 501" in run(str(file), "--url", url, "--minutes", "1")
