"""Parts of a server are killed and its surroundings fail, under load: the short form."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_server_recovers_alone_gives_no_wrong_answer_and_keeps_its_exposures() -> None:
    command = [sys.executable, "-m", "loadtest", "faults", "--quick"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["faults"] + len(found["skipped"]) == 8
    assert found["wrong_answers"] == 0
    assert found["exposures"] > 20
    assert found["exposures_lost_beyond_promise"] == 0
    assert None not in found["recovered_s"].values()
    assert {name for name, failed in found["failed_requests"].items() if failed} <= {"worker"}
