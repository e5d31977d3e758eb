"""`tta serve` of two replicas restarts them under load, when the signal USR1 asks for it."""

import signal
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import serving
from tests.factories.load import Load
from tests.factories.tiny_service import write_service
from tta_serve.evaluation.local_server import find_free_port

LIMIT_S = 400


@pytest.mark.long
def test_replicas_restart_with_another_config_and_no_request_fails(tmp_path: Path) -> None:
    server = {"replicas": 2, "drain_s": 60}
    config = write_service(tmp_path, server=server)
    with serving(config, find_free_port(), tmp_path / "log", tmp_path / "experts") as running:
        before = {process.pid for process in running.descendants("VLLM::EngineCore")}
        assert len(before) == 2
        load = Load(running.url, 4)
        with load.running():
            said = yaml.safe_load(config.read_text(encoding="utf-8"))
            said["library"]["entries"] = {"both": {"small": 0.5, "few": 0.5}}
            config.write_text(yaml.safe_dump(said), encoding="utf-8")
            running.process.send_signal(signal.SIGUSR1)
            running.wait_for_word("Restarted.", LIMIT_S)
        print(f"{dict(load.outcomes)}, slowest {load.slowest_s:.1f} s")
        assert load.failed == 0, load.outcomes
        assert load.outcomes["answered"] > 20
        after = {process.pid for process in running.descendants("VLLM::EngineCore")}
        assert len(after - before) == 2
        assert "tiny:both" in {model.id for model in running.client().models.list()}

        said["server"]["replicas"] = 3
        config.write_text(yaml.safe_dump(said), encoding="utf-8")
        running.process.send_signal(signal.SIGUSR1)
        running.wait_for_word("the most replicas: 2 until the next start, not 3", 30)
        assert running.ready()
