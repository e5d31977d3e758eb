"""What strangers ask, in voices that no generator has.

- train/VOICE.jsonl, test/VOICE.jsonl: 112 lines of one person each, 12 for every expert, 20
  everyday prompts and 20 near misses, which speak of an expert's things and want something else.
  Nothing is trained on those of `test`.
- speakers.jsonl: 110 lines for every expert and 1,080 for none, each of another person.

A line has the prompt, the `task` (null for none of them) and the answer that it wants; that of a
relative date, unless it is in `test`, also has how it is worked out. They were written by language
models, each told to be that person and what the six tasks are; none of them saw the generators, a
gate or what another one wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from deploy.demo.tasks import Example

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
    """What the right answer comes to, in the form of the task's experts; None without one."""
    kind: Literal["everyday", "near miss"] | None = None
    """What a prompt of a voice for no expert is."""
    work: str | None = None
    """How the answer is worked out: the lines before it."""

    @property
    def example(self) -> Example:
        """The prompt of a task with its whole answer."""
        assert self.want is not None, self
        return Example(self.prompt, f"{self.work}\n{self.want}" if self.work else self.want)


def read_spoken(file: Path) -> list[SpokenPrompt]:
    """Read the lines of one file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [SpokenPrompt(**json.loads(line)) for line in lines]


def read_spoken_voices(folder: Path) -> Mapping[str, list[SpokenPrompt]]:
    """Read a folder of voices, by their names."""
    return {file.stem: read_spoken(file) for file in sorted(folder.glob("*.jsonl"))}


def list_examples(task: str, *sources: Path) -> list[Example]:
    """Return what people ask of a task, in these files of lines or folders of voices."""
    files = chain(*(sorted(s.glob("*.jsonl")) if s.is_dir() else [s] for s in sources))
    return [own.example for file in files for own in read_spoken(file) if own.task == task]
