"""AIPerf: short benchmarks of synthetic prompts over four APIs."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients import asked

REQUESTS, OUTPUT = 4, 8


def profile(endpoint: str) -> dict[str, Any]:
    """AIPerf's report of a run against one kind of endpoint."""
    extra = {"merge": asked.MERGE, "ignore_eos": True, "temperature": 0}
    options = {
        "--model": asked.ROUTED,
        "--url": asked.server(),
        "--endpoint-type": endpoint,
        "--tokenizer": asked.base_folder(),
        "--request-count": str(REQUESTS),
        "--concurrency": "2",
        "--isl": "32",
        "--osl": str(OUTPUT),
        "--extra-inputs": json.dumps(extra),
        "--request-timeout-seconds": "120",
        "--workers-max": "1",
        "--ui": "none",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--streaming"]
        command += ["--no-server-metrics", "--no-gpu-telemetry", "--output-artifact-dir", folder]
        command += [word for option in options.items() for word in option]
        run(command, folder)
        (report,) = Path(folder).rglob("profile_export_aiperf.json")
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def run(command: list[str], folder: str) -> None:
    """Run AIPerf. Told that it is offline, it would look for the tokenizer's folder on a hub."""
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    errors = [line for line in done.stdout.splitlines() if "ERROR" in line]
    said = errors[0] if errors else f"it ended with {done.returncode}"
    asked.ensure(done.returncode == 0, said)


def ensure_served(endpoint: str) -> None:
    """All requests were answered, in streams of as many tokens as were asked for."""
    found = profile(endpoint)
    errors = found.get("error_summary")
    asked.ensure(not errors, f"requests failed: {errors}")
    count = found["request_count"]["avg"]
    asked.ensure(count == REQUESTS, f"{count} requests of {REQUESTS} were answered")
    asked.ensure(found["time_to_first_token"]["avg"] > 0, "no time to the first token")
    length = found["output_sequence_length"]["avg"]
    asked.ensure(abs(length - OUTPUT) <= 1, f"{length} tokens on average, not {OUTPUT}")


def chat() -> None:
    """Chat completions."""
    ensure_served("chat")


def completions() -> None:
    """Completions."""
    ensure_served("completions")


def responses() -> None:
    """Responses."""
    ensure_served("responses")


def messages() -> None:
    """Anthropic's messages."""
    ensure_served("messages")


if __name__ == "__main__":
    asked.run(chat, completions, responses, messages)
