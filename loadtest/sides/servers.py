"""The servers that benchmarks over HTTP compare, in processes of their own on 127.0.0.1."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from loadtest.common.processes import MARK, Tree
from loadtest.common.workload import EXPERTS, ROOT
from tta_serve.evaluation.local_server import find_free_port

DEMO = ROOT / "deploy" / "demo" / "serve.yaml"
SLOTS = 16
MAX_MODEL_LEN = 2048
KV_CACHE_GIB = 1
_READY_S = 300.0
_LAST_WORDS = 3000


def read_demo_config(policies: Collection[str] = ()) -> dict[str, Any]:
    """Return the demo's config with its own experts, to be written anywhere.

    Args:
        policies: Those of its policies that stay.
    """
    config: dict[str, Any] = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    config["library"] = {"path": str(EXPERTS)}
    config["model"]["chat_template"] = str(DEMO.with_name("chat_template.jinja"))
    config["policies"] = {name: config["policies"][name] for name in policies}
    return config


class NoAnswerError(RuntimeError):
    """A server did not come up; the message is the end of its log."""


@dataclass(frozen=True)
class ServerSide:
    """A server and how to ask it."""

    command: tuple[str, ...]
    """What starts it."""
    env: Mapping[str, str]
    """What it is told by its environment."""
    model: str
    """The name that it is asked for."""
    ready: str
    """A path that is 200 once it serves."""


def vllm(base: Path, port: int, *more: str) -> ServerSide:
    """Return how to start and ask vLLM's own server.

    Args:
        base: The model.
        port: Where it listens.
        more: Further options of it.
    """
    settings = {
        "model": base,
        "served-model-name": "base",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-num-seqs": SLOTS,
        "max-model-len": MAX_MODEL_LEN,
        "gpu-memory-utilization": 0.5,
    }
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager")
    return ServerSide((*command, *options, *more), _engine_environment(), "base", "/health")


def vllm_merged(base: Path, port: int, adapters: Mapping[str, Path], rank: int) -> ServerSide:
    """Return how to start vLLM's own server with adapters, each asked for by its name.

    Args:
        base: The model.
        port: Where it listens.
        adapters: Their folders, by name; all are resident.
        rank: The most that vLLM allows each of them.
    """
    options = {"max-loras": len(adapters), "max-cpu-loras": len(adapters), "max-lora-rank": rank}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    modules = [f"{name}={folder}" for name, folder in adapters.items()]
    return vllm(base, port, "--enable-lora", *words, "--lora-modules", *modules)


def vllm_in_place(base: Path, port: int) -> ServerSide:
    """Return how to start vLLM's own server, merging in place for one request at a time.

    What one mix has computed is another's no more, so that there is no prefix cache.
    """
    return vllm(
        base,
        port,
        "--no-enable-prefix-caching",
        "--worker-extension-cls",
        "loadtest.sides.inplace.InPlaceExtension",
        "--middleware",
        "loadtest.sides.in_turn.MergeInTurn",
    )


def ray_direct(base: Path, port: int) -> ServerSide:
    """Return how to start and ask Ray's own OpenAI app, with direct streaming."""
    env = {
        **_engine_environment(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
    }
    command = (sys.executable, "-m", "loadtest.sides.ray_direct", str(base), str(port))
    return ServerSide(command, env, "base", "/v1/models")


def ours(base: Path, port: int, config: Path = DEMO) -> ServerSide:
    """Return how to start ours as a user does, and to ask it for the base, pinned."""
    tta = Path(sys.executable).with_name("tta")
    options = ("--config", str(config), "--model", str(base), "--port", str(port))
    return ServerSide((str(tta), "serve", *options), {}, "smollm2:base", "/readyz")


def _engine_environment() -> dict[str, str]:
    """Return what our server tells its engine, for the others."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


class ServerProcess:
    """A server while it runs."""

    def __init__(
        self, side: ServerSide, port: int, log: Path, inherited: Mapping[str, str]
    ) -> None:
        """Start it, and return once it answers. Raises NoAnswerError."""
        self.side = side
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        mark = secrets.token_hex(8)
        environment = {**inherited, **side.env, MARK: mark}
        with log.open("wb") as file:
            # In a session of its own, so that Ctrl-C reaches it through us.
            self._process = subprocess.Popen(
                side.command,
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.tree = Tree(psutil.Process(self._process.pid), mark)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + _READY_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if httpx.get(self.url + self.side.ready, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        words = self._log.read_text(errors="replace", encoding="utf-8")[-_LAST_WORDS:]
        raise NoAnswerError(f"{' '.join(self.side.command[:4])} does not answer:\n{words}")

    def close(self) -> None:
        """End all of its processes."""
        self.tree.end()
        self._process.wait()


@contextmanager
def run_server(
    make: Callable[[int], ServerSide], log: Path, inherited: Mapping[str, str]
) -> Iterator[ServerProcess]:
    """Run a server on a free port meanwhile.

    Args:
        make: Makes it, of its port.
        log: What it writes.
        inherited: The environment that it has beside its own.

    Raises:
        NoAnswerError: It does not come up.
    """
    port = find_free_port()
    server = ServerProcess(make(port), port, log, inherited)
    try:
        yield server
    finally:
        server.close()
