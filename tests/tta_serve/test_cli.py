"""`tta serve` refuses what cannot work at once, with a message and no traceback."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from tta_serve.cli import app


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tta_serve.cli", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def config(folder: Path, text: str) -> str:
    file = folder / "serve.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {id: m, source: x}\nlibrary: {path: nowhere}\ndefault_policy: base\n", "is not a folder"),
        ("model: {id: m, source: x}\nlibrary: {path: .}\ndefault_policy: base\n", "holds no PEFT adapter folder"),
        ("model: {id: m, source: x, oops: 1}\nlibrary: {path: .}\ndefault_policy: base\n", "model.oops: Extra inputs"),
    ],
)
def test_a_start_that_cannot_work_says_why_and_exits_2(tmp_path: Path, text: str, says: str) -> None:
    result = run("serve", "--config", config(tmp_path, text))
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_base_that_is_not_there_is_named(tmp_path: Path, demo_experts: Path) -> None:
    result = run("serve", "--model", str(tmp_path / "no-model"), "--experts", str(demo_experts))
    assert result.returncode == 2
    assert "model.source" in result.stderr
    assert "no-model" in result.stderr


def test_without_a_config_model_and_experts_are_needed() -> None:
    result = run("serve", "--model", "x")
    assert result.returncode == 2
    assert "--experts" in result.stderr


def test_no_help_is_taken_for_markup_and_lost() -> None:
    def helps(command: Any) -> Iterator[str]:
        yield command.help or ""
        yield from (getattr(parameter, "help", None) or "" for parameter in command.params)
        for part in getattr(command, "commands", {}).values():
            yield from helps(part)

    found = list(helps(typer.main.get_command(app)))
    assert len(found) > 100
    assert [text for text in found if str(Text.from_markup(text)) != text] == []
