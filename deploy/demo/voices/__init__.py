"""What strangers ask, in voices that no generator has.

- train/VOICE.jsonl, test/VOICE.jsonl: 112 lines of one person each, 12 for every expert, 20
  everyday prompts and 20 near misses, which speak of an expert's things and want something else.
  Nothing is trained on those of `test`.
- speakers.jsonl: 110 lines for every expert and 1,080 for none, each of another person.

A line has the prompt, the `task` (null for none of them) and the answer that it wants. They were
written by language models, each told to be that person and what the six tasks are; none of them saw
the generators, a gate or what another one wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_HERE = Path(__file__).parent
TRAIN = _HERE / "train"
TEST = _HERE / "test"
SPEAKERS = _HERE / "speakers.jsonl"
NEAR_MISS = "near miss"


@dataclass(frozen=True)
class SpokenPrompt:
    """One line."""

    prompt: str
    task: str | None
    """None where the base should answer."""
    want: str | None = None
    """The right answer, in the form that the task's experts are to have; None without one."""
    kind: Literal["everyday", "near miss"] | None = None
    """What a prompt of a voice for no expert is."""


def read_spoken(file: Path) -> list[SpokenPrompt]:
    """Read the lines of one file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [SpokenPrompt(**json.loads(line)) for line in lines]


def read_spoken_voices(folder: Path) -> Mapping[str, list[SpokenPrompt]]:
    """Read a folder of voices, by their names."""
    return {file.stem: read_spoken(file) for file in sorted(folder.glob("*.jsonl"))}
