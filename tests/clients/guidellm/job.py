"""GuideLLM: short benchmarks of synthetic prompts over three APIs."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients import asked

REQUESTS, STREAMS, PROMPT, OUTPUT = 4, 2, 32, 8


def benchmark(path: str) -> dict[str, Any]:
    """The report of a benchmark over the API with this path."""
    extras = {"body": {"merge": asked.MERGE}}
    backend = {
        "kind": "openai_http",
        "target": asked.server(),
        "model": asked.ROUTED,
        "request_format": path,
        "extras": extras,
    }
    data = {"kind": "synthetic_text", "prompt_tokens": PROMPT, "output_tokens": OUTPUT}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command(
            folder,
            "--backend",
            json.dumps(backend),
            "--data",
            json.dumps(data),
            "--tokenizer",
            json.dumps({"kind": "hf_auto", "model": asked.base_folder()}),
            "--profile",
            json.dumps({"kind": "concurrent", "streams": [STREAMS]}),
            "--constraint",
            json.dumps({"kind": "max_requests", "count": REQUESTS}),
            "--output",
            json.dumps({"kind": "json", "path": str(report)}),
        )
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def command(folder: str, *options: str) -> None:
    """Run GuideLLM; what it says goes into the error if it fails."""
    program = str(Path(sys.executable).with_name("guidellm"))
    arguments = [program, "run", "--disable-console-interactive", *options]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    said = done.stderr.strip().splitlines() or ["it failed and said nothing"]
    asked.ensure(done.returncode == 0, said[-1])


def ensure_served(path: str) -> None:
    """All requests of a benchmark were answered, with as many tokens as it asked for."""
    (found,) = benchmark(path)["benchmarks"]
    requests = found["requests"]
    errors = [r.get("info", {}).get("error") for r in requests["errored"]]
    asked.ensure(not errors, f"{len(errors)} requests failed: {errors[:1]}")
    done = requests["successful"]
    asked.ensure(len(done) == REQUESTS, f"{len(done)} requests of {REQUESTS} were answered")
    tokens = {r["output_metrics"]["text_tokens"] for r in done}
    asked.ensure(tokens == {OUTPUT}, f"output tokens {tokens}, not {OUTPUT}")


def chat() -> None:
    """Chat completions, streamed."""
    ensure_served("/v1/chat/completions")


def completions() -> None:
    """Completions, streamed."""
    ensure_served("/v1/completions")


def responses() -> None:
    """Responses, streamed."""
    ensure_served("/v1/responses")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    asked.run(chat, completions, responses)
