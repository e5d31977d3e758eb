"""What of a machine would stop a server, or slow it down."""

import os
import re
import resource
import shutil
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from adapters.library.checkup import Fault
from tta_serve.config.sections import ServeConfig

SHARED_MEMORY_GIB = 0.5
DISK_GIB = 1.0
OPEN_FILES = 4096
_PROCESSES_GIB = 2.5
"""What the server's processes take besides weights and cache."""
_GIB = 2**30
_CPU_BYTES = 4
"""Of a weight on a CPU, which are float32 by default."""


def examine_machine(config: ServeConfig | None) -> list[Fault]:
    """Return what is wrong with this machine for a server.

    Args:
        config: What is to be served, None if that is not known.
    """
    found = [*_check_packages(), *_check_processor(), *_check_limits()]
    if config is not None:
        found += [*_check_memory(config), *_check_ports(config)]
    return found


def _check_packages() -> Iterator[Fault]:
    """Compare the installed versions with those that private names were read at."""
    for text in requires("tta-serve") or []:
        wanted = Requirement(text)
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            continue
        if "==" in str(wanted.specifier) and not wanted.specifier.contains(installed):
            what = f"{installed} is installed; this server is made for {wanted.specifier}"
            yield Fault(
                wanted.name, what, "set the environment up from the lock: make .venv/.ready"
            )


def _check_processor() -> Iterator[Fault]:
    import torch

    if Path("/dev/nvidiactl").exists() and torch.version.cuda is None:
        what = "there is a GPU, and vLLM's build for CPUs is installed"
        yield Fault("GPU", what, "TTA_TARGET=gpu make .venv/.ready", "note")
    cpu = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\bavx\w+", cpu.read_text(encoding="utf-8"))) if cpu.exists() else set()
    if torch.version.cuda is None and flags:
        if "avx2" not in flags:
            remedy = "serve on another machine"
            yield Fault("CPU", "it lacks AVX2, which vLLM's build for CPUs needs", remedy)
        elif "avx512f" not in flags:
            what = "it lacks AVX-512: products of 16-bit weights are slower, and not packed"
            yield Fault("CPU", what, "keep model.dtype unset, which is float32", "note")


def _check_limits() -> Iterator[Fault]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        what = f"a process may open {files} files; each connection is one"
        yield Fault("open files", what, f"ulimit -n {16 * OPEN_FILES}", "note")
    for place, need, remedy in (
        ("/dev/shm", SHARED_MEMORY_GIB, "give a container more: --shm-size=2g"),
        (os.environ.get("RAY_TMPDIR", "/tmp"), DISK_GIB, "make room; Ray keeps its logs there"),
    ):
        if Path(place).is_dir() and (free := shutil.disk_usage(place).free / _GIB) < need:
            yield Fault(place, f"{free:.2f} GiB are free; Ray wants {need:g}", remedy)


def _check_memory(config: ServeConfig) -> Iterator[Fault]:
    """Compare an estimate of what a CPU's server takes with what there is."""
    import torch

    if torch.cuda.is_available():
        return
    source = Path(config.model.source).expanduser()
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    if not weights:
        return  # a hub's base, which is not here
    halves = config.model.dtype in ("bfloat16", "float16", "half")
    each = weights * (1 if halves else _read_growth(source)) / _GIB + config.model.kv_cache_gib
    need = config.server.most_replicas * (each + _PROCESSES_GIB)
    memory = psutil.virtual_memory()
    total, free = memory.total / _GIB, memory.available / _GIB
    what = f"the server takes about {need:.1f} GiB; there are {total:.1f}, of which {free:.1f} free"
    if need > total:
        yield Fault("memory", what, "fewer replicas, a smaller model.kv_cache_gib or base")
    elif need > free:
        yield Fault("memory", what, "end what else runs here", "note")


def _read_growth(source: Path) -> float:
    """Return how many times its files' size a base takes as float32."""
    from adapters.errors import AdapterError
    from adapters.files.checkpoint import Checkpoint

    try:
        checkpoint = Checkpoint.open(source)
    except AdapterError:
        return 1.0
    widths = [getattr(dtype, "itemsize", 1) for dtype in checkpoint.dtypes.values()]
    return _CPU_BYTES * len(widths) / sum(widths)


def _check_ports(config: ServeConfig) -> Iterator[Fault]:
    server = config.server
    places = {"server.port": (server.host, server.port)}
    if server.admin_port is not None:
        places["server.admin_port"] = (server.admin_host, server.admin_port)
    for name, (host, port) in places.items():
        try:
            family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
        except OSError as error:
            what = f"{host}:{port} cannot be listened on: {error.strerror}"
            yield Fault(name, what, "end what listens there, or choose another")
