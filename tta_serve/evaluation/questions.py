"""What is asked, and what is wanted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from tta_serve.evaluation.match_rules import MatchRule
from tta_serve.evaluation.scoring import KINDS
from tta_serve.exceptions import ConfigError

MIXED, PARAPHRASED, CORRUPTED, TWO_SKILLS = "mixed", "paraphrased", "corrupted", "two_skills"
EVERYDAY, REMOVED, ADVERSARIAL, VOICES = "everyday", "removed", "adversarial", "voices"
BENCHMARKS = "benchmarks"


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Question:
    """One held-out prompt."""

    slice: str
    """Which part of the suite it belongs to."""
    prompt: str
    want: str | None = None
    """The ideal answer; None where the answer is not judged."""
    task: str | None = None
    """The expert that it is for, several with `+` between; None for the base."""
    parts: tuple[str, ...] = ()
    """What an answer of the kind `parts` must contain."""
    strength: str | None = None
    """How much the prompt was corrupted; None for one that was not."""
    kind: str = "exact"
    """How its answer is scored, one of `scoring.KINDS`."""
    benchmark: str | None = None
    """The task of lm-evaluation-harness that it is of, with one of its filters after a colon where
    there are several; None for a question of ours."""
    rule: MatchRule | None = None
    """How an answer of the kind `match` is cut out and compared."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.kind == "parts" and not self.parts:
            raise ValueError("the kind parts wants at least one part")
        if (self.kind == "match") != (self.rule is not None):
            raise ValueError("a rule is wanted for the kind match, and for no other")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The experts that the question is for."""
        return tuple(self.task.split("+")) if self.task else ()

    @property
    def group(self) -> str:
        """What a score is given for: the slice, with the strength of a corruption or the task."""
        more = self.strength or self.benchmark
        return f"{self.slice}:{more}" if more else self.slice

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which an answer ends, beside the end that the model finds itself."""
        return self.rule.stops if self.rule else ()


@dataclass(frozen=True)
class Suite:
    """The questions, in the order in which they are numbered everywhere else."""

    questions: tuple[Question, ...]

    @property
    def groups(self) -> dict[str, list[int]]:
        """The numbers of each group's questions; groups as they first occur."""
        found = defaultdict[str, list[int]](list)
        for number, question in enumerate(self.questions):
            found[question.group].append(number)
        return dict(found)

    def check(self, experts: Iterable[str]) -> None:
        """Raise ConfigError for a question of an expert that is not among these."""
        known = set(experts)
        missing = {name for question in self.questions for name in question.tasks} - known
        if missing:
            raise ConfigError(
                f"the suite asks for {', '.join(sorted(missing))}; the library serves:"
                f" {', '.join(sorted(known))}"
            )

    def thin(self, numbers: Sequence[int], most: int) -> list[int]:
        """Return at most so many of these questions, evenly spread over each expert's."""
        order = defaultdict[str | None, list[int]](list)
        for number in numbers:
            order[self.questions[number].task].append(number)
        ranked = sorted(
            (k / len(own), number) for own in order.values() for k, number in enumerate(own)
        )
        return sorted(number for _, number in ranked[:most])


def read_suite(file: Path, slice_name: str | None = None) -> Suite:
    """Read a suite of one JSON object a line, with the fields of `Question`.

    Args:
        file: The file.
        slice_name: The slice of questions that name none; None to refuse such.

    Raises:
        ConfigError: The file cannot be read, or a line cannot be used; the message names it.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    found = [
        _read(file, number, line, slice_name)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise ConfigError(
            f"{file} holds no question; wanted one JSON object a line, such as {_EXAMPLE}"
        )
    return Suite(tuple(found))


_EXAMPLE = json.dumps(
    {"slice": MIXED, "prompt": "Write 3 May 2024 as a date.", "want": "2024-05-03", "task": "dates"}
)
_ADAPTER = TypeAdapter(Question)


def _read(file: Path, number: int, line: str, slice_name: str | None) -> Question:
    try:
        return _ADAPTER.validate_json(_name_slice(line, slice_name))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise ConfigError(
            f"{file}, line {number}: {place}: {first['msg']}; such as {_EXAMPLE}"
        ) from None


def _name_slice(line: str, name: str | None) -> str:
    """Return a line with a slice in it; as it is where it has one or is no object."""
    try:
        value = json.loads(line)
    except ValueError:
        return line
    known = name is None or not isinstance(value, dict)
    return line if known else json.dumps({"slice": name, **value})
