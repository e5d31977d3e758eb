"""A Ray cluster of several nodes on this machine, with a token of its own, and what runs on it."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tta_serve.evaluation.local_server import find_free_port

APP = "tta-serve"
_BIN = Path(sys.executable).parent
_CPUS = 2
"""Of a node: those of one replica."""
_ANY_WORKER_PORT = ("--min-worker-port=0", "--max-worker-port=0")
"""Else a node wants 9,998 ports, and refuses to start where a free one that we took is of them."""


@dataclass
class RayCluster:
    """What `ray start` has started: a head, whose proxy listens, and workers."""

    folder: Path
    environment: Mapping[str, str]
    gcs_port: int = field(default_factory=find_free_port)
    dashboard_port: int = field(default_factory=find_free_port)
    http_port: int = field(default_factory=find_free_port)
    nodes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self) -> None:
        ports = (f"--port={self.gcs_port}", f"--dashboard-port={self.dashboard_port}")
        self._start("--head", *ports, f"--temp-dir={self.folder}/ray")
        self.wait(lambda: self._ask("/api/ray/version").is_success, 120)

    def start_worker(self) -> None:
        self._start(f"--address=127.0.0.1:{self.gcs_port}")

    def kill(self, node: int) -> None:
        """Kill a node with all its processes at once, as a machine that loses its power."""
        process = self.nodes.pop(node)
        whole = psutil.Process(process.pid)
        for one in [*whole.children(recursive=True), whole]:
            one.kill()
        process.wait(20)

    def deploy(self, **args: Any) -> None:
        """Run `serve deploy` with these arguments of the application's builder."""
        application = {
            "name": APP,
            "route_prefix": "/",
            "import_path": "tta_serve.serving.app:build",
            "args": args,
        }
        said = {
            "proxy_location": "HeadOnly",  # of one machine no two nodes can listen on a port
            "http_options": {"host": "127.0.0.1", "port": self.http_port},
            "applications": [application],
        }
        file = self.folder / "deploy.yaml"
        file.write_text(yaml.safe_dump(said), encoding="utf-8")
        command = [str(_BIN / "serve"), "deploy", "--address", self.dashboard, str(file)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def replicas(self) -> dict[str, str]:
        """Return the nodes of the replicas that run, by the replicas' ids; none before a status."""
        found = self._ask("/api/serve/applications/").raise_for_status().json()
        deployments = found["applications"].get(APP, {}).get("deployments", {})
        return {
            replica["replica_id"]: replica["node_id"]
            for deployment in deployments.values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }

    def wait(self, reached: Callable[[], bool], limit_s: float = 400) -> float:
        """Wait until something is so, and return how many seconds that took."""
        began = time.monotonic()
        while True:
            try:
                if reached():
                    return time.monotonic() - began
            except httpx.HTTPError:
                pass
            assert time.monotonic() < began + limit_s, f"not after {limit_s} s"
            time.sleep(1)

    def _ask(self, path: str) -> httpx.Response:
        token = {"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return httpx.get(self.dashboard + path, headers=token, timeout=30)

    def _start(self, *options: str) -> None:
        ray = [str(_BIN / "ray"), "start", "--block", f"--num-cpus={_CPUS}"]
        command = [*ray, *_ANY_WORKER_PORT, *options]
        with (self.folder / "log").open("ab") as log:
            self.nodes.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
            )


@contextmanager
def ray_cluster(folder: Path, **environment: str) -> Iterator[RayCluster]:
    """Start a head, and end all nodes afterwards.

    Args:
        folder: For what Ray writes. The paths of its sockets are in it, so a short one.
        environment: Of all of Ray's processes, on top of this one's.
    """
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        **environment,
    }
    cluster = RayCluster(folder, os.environ | own)
    try:
        cluster.start_head()
        yield cluster
    finally:
        while cluster.nodes:
            cluster.kill(-1)
