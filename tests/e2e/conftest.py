"""The demo as a user starts it: `tta serve` in a process of its own, once a session."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.conftest import ROOT
from tests.factories.collector import Collector, collecting
from tta_serve.evaluation.local_server import find_free_port

START_LIMIT_S = 600


ADMIN_KEY = "the key of these tests"


@dataclass(frozen=True)
class Demo:
    """The demo while it runs."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    experts: Path
    """The library's folder, a copy that tests may change and then put back as it was."""
    store: str = ""
    """The address of its store, "" for none."""

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=180
        )

    def descendants(self, name: str) -> list[psutil.Process]:
        """Return the processes of this server whose command line holds `name`."""
        found: list[psutil.Process] = []
        if self.process.poll() is not None:
            return found
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def last_words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What its log says so far."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]

    def wait_ready(self, limit_s: float = START_LIMIT_S) -> None:
        end = time.monotonic() + limit_s
        while not self.ready():
            assert self.process.poll() is None, f"the server ended:\n{self.last_words}"
            assert time.monotonic() < end, f"not ready after {limit_s} s:\n{self.last_words}"
            time.sleep(1)

    def wait_for_word(self, word: str, limit_s: float) -> None:
        """Wait until the server has printed something."""
        end = time.monotonic() + limit_s
        while word not in self.last_words:
            assert time.monotonic() < end, f"no {word!r} after {limit_s} s:\n{self.last_words}"
            time.sleep(1)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the demo sends its spans."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def demo(
    base: Path,
    demo_experts: Path,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    log, experts, port = folder / "log", folder / "experts", find_free_port()
    shutil.copytree(demo_experts, experts)
    options = ["--model", str(base), "--experts", str(experts)]
    said = {
        "TTA__SERVER__TRACES__ENDPOINT": collector.endpoint,
        "TTA__STORE__URL": f"sqlite:///{folder}/tta.db",
    }
    config = ROOT / "deploy/demo/serve.yaml"
    with serving(config, port, log, experts, *options, **said) as server:
        yield replace(server, store=said["TTA__STORE__URL"])


@contextmanager
def serving(
    config: Path, port: int, log: Path, experts: Path, *options: str, **environment: str
) -> Iterator[Demo]:
    """Run `tta serve`, and stop it at the end as a service manager does.

    SIGINT is ignored where tests run in the background.
    """
    command = [
        sys.executable,
        "-m",
        "tta_serve.cli.main",
        "serve",
        "--config",
        str(config),
        "--port",
        str(port),
        *options,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=os.environ | {"TTA_ADMIN_KEY": ADMIN_KEY} | environment,
        )
    server = Demo(process, f"http://127.0.0.1:{port}", log, experts)
    try:
        server.wait_ready()
        yield server
    finally:
        engines = server.descendants("VLLM::")
        process.send_signal(signal.SIGTERM)
        process.wait(90)
        _, left = psutil.wait_procs(engines, timeout=20)
        assert not left, "the server has ended, its engine has not"


@pytest.fixture(scope="session")
def client(demo: Demo) -> openai.OpenAI:
    return demo.client()
