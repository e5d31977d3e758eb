"""A server's processes, adopted ones too, and the CPU time and memory that they take."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

MARK = "LOADTEST_SIDE"  # of the environment: by it a process is known whose parent is gone
_END_S = 30.0
_PARTS = {
    "gcs_server": "Ray gcs_server",
    "raylet": "Ray raylet",
    "log_monitor.py": "Ray log monitor",
    "monitor.py": "Ray autoscaler monitor",
    "dashboard.py": "Ray dashboard",
    "agent.py": "Ray dashboard agent",
    "haproxy": "HAProxy",
}


@dataclass
class Tree:
    """The processes that came from one, which was started with `MARK` in its environment."""

    root: psutil.Process
    mark: str
    """The value of `MARK`."""
    _known: dict[int, psutil.Process] = field(default_factory=dict)

    def list_alive(self) -> list[psutil.Process]:
        """Return all that run now.

        Ray's workers write over their environment, so children count too.
        """
        found = {self.root.pid: self.root}
        for process in (*self._known.values(), *_marked(self.mark), self.root):
            with suppress(psutil.Error):
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        self._known |= found
        return [process for process in self._known.values() if _runs(process)]

    def end(self) -> None:
        """Ask the first to end, and kill what is left after a while."""
        processes = self.list_alive()
        with suppress(psutil.Error):
            self.root.terminate()
        psutil.wait_procs(processes, timeout=_END_S)
        left = self.list_alive()
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_END_S)

    def read_cpu(self) -> dict[int, tuple[str, float]]:
        """Return what each process is and the CPU seconds it has taken, by process id."""
        found = {}
        for process in self.list_alive():
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = (_name(process), times.user + times.system)
        return found

    def read_memory(self) -> int:
        """Return the bytes of memory that all of them take.

        Pages that several processes share count once: Linux's proportional set size.
        """
        taken = 0
        for process in self.list_alive():
            # Whoever ended meanwhile takes none.
            with suppress(psutil.NoSuchProcess):
                taken += process.memory_full_info().pss
        return taken


@dataclass
class Meter:
    """Measures the CPU time of a tree's processes over the spans that it is entered for."""

    tree: Tree
    seconds: float = 0.0
    """How long all spans were."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    """CPU seconds in them, by what a process is."""
    _before: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    _began: float = 0.0

    def __enter__(self) -> "Meter":
        self._before = self.tree.read_cpu()
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.monotonic() - self._began
        for pid, (name, cpu_s) in self.tree.read_cpu().items():
            before = self._before.get(pid, ("", 0.0))[1]
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + cpu_s - before

    @property
    def cores(self) -> dict[str, float]:
        """CPU seconds per second by what a process is, the most expensive first."""
        rates = {name: cpu_s / self.seconds for name, cpu_s in self.cpu_s.items()}
        return dict(sorted(rates.items(), key=lambda item: -item[1]))


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                yield process


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _name(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    if words[0].startswith(("ray::", "VLLM::")):
        return words[0].split(".")[0].split("#")[0].strip()
    files = [os.path.basename(word) for word in words[:4]]
    for file in files:
        if file in _PARTS:
            return _PARTS[file]
    if any("resource_tracker" in word for word in words):
        return "resource tracker"
    return "server" if process.ppid() == os.getpid() else files[0]
