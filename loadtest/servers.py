"""The servers that `python -m loadtest edge` compares, as processes of their own on 127.0.0.1."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from loadtest.processes import MARK, Tree

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 16
MAX_MODEL_LEN = 2048
KV_CACHE_GIB = 1
_READY_S = 300.0
_LAST_WORDS = 3000


class NoAnswerError(RuntimeError):
    """A server did not come up, or not again; the message is the end of its log."""


@dataclass(frozen=True)
class Side:
    """A server and how to ask it. model: its name   ready: a path that is 200 once it serves"""

    command: tuple[str, ...]
    env: Mapping[str, str]
    model: str
    ready: str


def vllm(base: Path, port: int) -> Side:
    """vLLM's own server."""
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
    return Side((*command, *options), _engine_environment(), "base", "/health")


def ray_direct(base: Path, port: int) -> Side:
    """Ray's own OpenAI app with direct streaming."""
    env = {
        **_engine_environment(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
    }
    command = (sys.executable, "-m", "loadtest.direct", str(base), str(port))
    return Side(command, env, "base", "/v1/models")


def ours(base: Path, port: int) -> Side:
    """Ours, started as a user does. Its model is the base: pinned."""
    config = ROOT / "deploy" / "demo" / "serve.yaml"
    tta = Path(sys.executable).with_name("tta")
    command = (
        str(tta),
        "serve",
        "--config",
        str(config),
        "--model",
        str(base),
        "--port",
        str(port),
    )
    return Side(command, {}, "smollm2:base", "/readyz")


def _engine_environment() -> dict[str, str]:
    """What our server tells its engine."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


class Server:
    """A side while it runs."""

    def __init__(self, side: Side, port: int, log: Path, inherited: Mapping[str, str]) -> None:
        """Starts it, and returns once it answers. Raises NoAnswerError."""
        self.side, self.url, self._log = side, f"http://127.0.0.1:{port}", log
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
        words = self._log.read_text(errors="replace")[-_LAST_WORDS:]
        raise NoAnswerError(f"{' '.join(self.side.command[:4])} does not answer:\n{words}")

    def close(self) -> None:
        """End all of its processes."""
        self.tree.end()
        self._process.wait()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
