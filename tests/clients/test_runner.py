"""The runner's reading of what jobs say, and that every client has what it needs."""

import re
from pathlib import Path

import pytest

from tests.clients import runner
from tests.clients.catalog import CLIENTS, KNOWN, Client
from tests.clients.environments import version

CLIENT = CLIENTS["openai"]


def read(said: str, code: int | None) -> runner.Outcome:
    return runner.read_outcome(CLIENT, code, said)


def test_steps_are_read_and_the_rest_is_not() -> None:
    outcome = read("noise\npassed: chat\nTraceback\nfailed: tools: Error: no | tool\n", 1)
    assert outcome.passed == ["chat"]
    assert outcome.failures == {"tools": "Error: no | tool"}
    assert outcome.words() == "failed: tools: Error: no | tool"


def test_a_job_that_does_not_end_as_its_steps_say_has_failed() -> None:
    assert read("passed: chat\n", 0).failures == {}
    assert read("passed: chat\nkilled", -9).failures == {"end": "it ended with -9: killed"}
    assert read("ImportError: no", 1).failures == {"end": "it ended with 1: ImportError: no"}
    assert "end" in read("", 0).failures
    assert "limit" in read("passed: chat\n", None).failures


def test_a_known_failure_is_told_and_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, ("openai", "tools"), "it sends rubbish")
    outcome = read("passed: chat\nfailed: tools: Error: 400\n", 1)
    assert outcome.failures == {}
    assert outcome.words() == "passed (1 steps); tools fails: it sends rubbish"


def test_the_table_has_a_row_for_each_and_keeps_those_of_others() -> None:
    before = "| openai | 1 | old | old |\n| DSPy | 1 | old | passed |\n"
    rows = runner.table([read("failed: b: x | y\n", 1)], before).splitlines()[2:]
    assert len(rows) == 2
    assert rows[0].endswith("| failed: b: x \\| y |")
    assert rows[1] == "| DSPy | 1 | old | passed |"


@pytest.mark.parametrize("client", CLIENTS.values(), ids=list(CLIENTS))
def test_every_client_has_a_job_and_exact_pins(client: Client) -> None:
    assert any((client.folder / name).is_file() for name in ("job.py", "job.mjs"))
    assert re.fullmatch(r"[\d.]+", version(client).split("+")[0])
    requirements = client.folder / "requirements.txt"
    if requirements.exists():
        assert all("==" in line for line in requirements.read_text(encoding="utf-8").splitlines())


def test_known_failures_are_of_steps_that_exist() -> None:
    for name, step in KNOWN:
        jobs = [
            file
            for file in CLIENTS[name].folder.glob("job.*")
            if step in file.read_text(encoding="utf-8")
        ]
        assert jobs, f"{name} has no step {step}"


def test_a_job_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(runner, "JOB_LIMIT_S", 0.5)
    monkeypatch.setattr(runner, "ensure_base", lambda: tmp_path)
    log = tmp_path / "log"
    assert runner.run_job(["sh", "-c", "echo begun; sleep 60 & sleep 60"], log) is None
    assert log.read_text(encoding="utf-8") == "begun\n"
