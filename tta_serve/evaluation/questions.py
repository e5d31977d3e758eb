"""What is asked, and what is wanted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from tta_serve.config import ConfigError
from tta_serve.evaluation.scoring import KINDS

MIXED, PARAPHRASED, CORRUPTED, TWO_SKILLS = "mixed", "paraphrased", "corrupted", "two_skills"
EVERYDAY, REMOVED, ADVERSARIAL = "everyday", "removed", "adversarial"


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Question:
    """One held-out prompt.

    slice: which part of the suite it belongs to   want: the ideal answer, None where the answer is not judged
    task: the expert it is for, several with `+` between, None for the base   parts: what the kind `parts` looks for
    strength: how much it was corrupted   kind: how its answer is scored, one of `scoring.KINDS`
    """

    slice: str
    prompt: str
    want: str | None = None
    task: str | None = None
    parts: tuple[str, ...] = ()
    strength: str | None = None
    kind: str = "exact"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.kind == "parts" and not self.parts:
            raise ValueError("the kind parts wants at least one part")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The experts that it is for."""
        return tuple(self.task.split("+")) if self.task else ()

    @property
    def group(self) -> str:
        """The slice, with the strength of the corruption if there is one: what a score is given for."""
        return f"{self.slice}:{self.strength}" if self.strength else self.slice


@dataclass(frozen=True)
class Suite:
    """The questions, in the order in which they are numbered everywhere else."""

    questions: tuple[Question, ...]

    @property
    def groups(self) -> dict[str, list[int]]:
        """The numbers of each group's questions, groups in the order in which they first occur."""
        found = defaultdict[str, list[int]](list)
        for number, question in enumerate(self.questions):
            found[question.group].append(number)
        return dict(found)

    def check(self, experts: Iterable[str]) -> None:
        """Raises ConfigError for a question of an expert that the library does not have."""
        known = set(experts)
        missing = {name for question in self.questions for name in question.tasks} - known
        if missing:
            raise ConfigError(
                f"the suite asks for {', '.join(sorted(missing))}; the library serves: {', '.join(sorted(known))}"
            )

    def thinned(self, numbers: Sequence[int], most: int) -> list[int]:
        """At most so many of them, evenly spread over each expert's."""
        order = defaultdict[str | None, list[int]](list)
        for number in numbers:
            order[self.questions[number].task].append(number)
        ranked = sorted((k / len(own), number) for own in order.values() for k, number in enumerate(own))
        return sorted(number for _, number in ranked[:most])


def read_suite(file: Path) -> Suite:
    """A suite of one JSON object a line, with the fields of `Question`. Raises ConfigError that names the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    found = [_read(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{file} holds no question; wanted one JSON object a line, such as {_EXAMPLE}")
    return Suite(tuple(found))


_EXAMPLE = json.dumps({"slice": MIXED, "prompt": "Write 3 May 2024 as a date.", "want": "2024-05-03", "task": "dates"})
_ADAPTER = TypeAdapter(Question)


def _read(file: Path, number: int, line: str) -> Question:
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise ConfigError(f"{file}, line {number}: {place}: {first['msg']}; such as {_EXAMPLE}") from None
