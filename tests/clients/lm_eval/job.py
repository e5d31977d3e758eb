"""The evaluation harness: generated answers over two APIs, and log-probabilities of given ones."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients import asked

TASKS = Path(__file__).with_name("tasks")


def evaluate(model: str, path: str, task: str, *more: str) -> dict[str, Any]:
    """The harness's results for one task, through its command line."""
    arguments = f"model={asked.ROUTED},base_url={asked.server()}{path},max_retries=1,{more[0]}"
    command = [str(Path(sys.executable).with_name("lm-eval")), "run", "--model", model]
    command += ["--model_args", arguments, "--tasks", task, "--include_path", str(TASKS)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--output_path", folder, *more[1:]]
        done = subprocess.run(command, cwd=TASKS, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        asked.ensure(done.returncode == 0, last_line(done.stderr))
        (found,) = Path(folder).rglob("results*.json")
        results: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))["results"][task]
    return results


def last_line(text: str) -> str:
    """The last line of what a command said."""
    return (text.strip().splitlines() or ["the command failed and said nothing"])[-1]


def tokenizer() -> str:
    """The harness's arguments for a tokenizer in a local folder."""
    return f"tokenizer={asked.base_folder()},tokenizer_backend=huggingface,max_length=2048"


def chat() -> None:
    """Answers over chat completions."""
    path = "/v1/chat/completions"
    found = evaluate(
        "local-chat-completions",
        path,
        "tta_sql",
        "max_length=2048",
        "--apply_chat_template",
    )
    asked.ensure(found["exact_match,none"] == 1, f"the results: {found}")


def completions() -> None:
    """Answers over completions, with the chat template applied by the harness."""
    options = (tokenizer(), "--apply_chat_template")
    found = evaluate("local-completions", "/v1/completions", "tta_sql", *options)
    asked.ensure(found["exact_match,none"] == 1, f"the results: {found}")


def likelihoods() -> None:
    """The likelier of two continuations, from the echoed prompt's log-probabilities."""
    found = evaluate("local-completions", "/v1/completions", "tta_capitals", tokenizer())
    asked.ensure(found["acc,none"] == 1, f"the results: {found}")


if __name__ == "__main__":
    asked.run(chat, completions, likelihoods)
