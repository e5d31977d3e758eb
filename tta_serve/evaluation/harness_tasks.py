"""Tasks of lm-evaluation-harness as questions: people evaluate on what they know.

The format is that of `docs/task_guide.md` in https://github.com/EleutherAI/lm-evaluation-harness.
What it asks for that is not done here is refused by name; nothing in a task's file is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from tta_serve.evaluation.harness_documents import DocumentError, DocumentReader
from tta_serve.evaluation.harness_files import (
    Document,
    find_task_files,
    read_documents,
    read_task_file,
)
from tta_serve.evaluation.harness_format import UNSUPPORTED, HarnessTask
from tta_serve.evaluation.questions import BENCHMARKS, Question, Suite
from tta_serve.exceptions import ConfigError


def read_tasks(places: Sequence[Path], most: int | None = None) -> Suite:
    """Read tasks of lm-evaluation-harness as a suite.

    A task is a group of the slice `benchmarks`, or one for each entry of its `filter_list`.

    Args:
        places: The tasks' YAML files, or folders of such.
        most: How many documents of a task are asked, the first ones; None for all.

    Raises:
        ConfigError: A task cannot be used; the message names the file and the key.
    """
    files = [file for place in places for file in find_task_files(place)]
    tasks = [_FoundTask(file, _read_task(file)) for file in dict.fromkeys(files)]
    _check_names(tasks)
    return Suite(tuple(question for task in tasks for question in task.list_questions(most)))


def _read_task(file: Path) -> HarnessTask:
    values = read_task_file(file)
    try:
        return HarnessTask.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_explain(e['loc'], e['type'], e['msg'])}" for e in error.errors()]
        raise ConfigError("\n".join([f"{file} cannot be used:", *lines])) from None


def _explain(place: Sequence[str | int], kind: str, message: str) -> str:
    """Return a key and what is wrong with it."""
    key = ".".join(map(str, place))
    if kind == "extra_forbidden":
        message = UNSUPPORTED.get(key, "`tta eval` does not know this key; leave it out")
    message = message.removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _check_names(tasks: Sequence[_FoundTask]) -> None:
    files: dict[str, Path] = {}
    for found in tasks:
        name = found.task.task
        if name in files:
            raise ConfigError(
                f"{found.file}: task: {files[name]} is called {name!r} as well; rename one of them"
            )
        files[name] = found.file


@dataclass(frozen=True)
class _FoundTask:
    """A task, and the file that its paths are relative to."""

    file: Path
    task: HarnessTask

    def list_questions(self, most: int | None) -> Iterator[Question]:
        """Yield the questions of the task's first documents, all of them for each filter."""
        key, name = self.task.find_asked_split()
        documents = self._read_split(key, name)
        asked = self._ask(documents, documents[:most])
        for benchmark, rule in self.task.list_rules().items():
            for prompt, (want, *others) in asked:
                yield Question(
                    BENCHMARKS,
                    prompt,
                    want,
                    kind="match",
                    benchmark=benchmark,
                    rule=replace(rule, alternatives=tuple(others)),
                )

    def _ask(
        self, documents: Sequence[Document], asked: Sequence[Document]
    ) -> list[tuple[str, list[str]]]:
        """Return the prompts of documents, each with the answers that are right."""
        reader = DocumentReader(self.task, frozenset(documents[0]))
        pool, found = self._read_shots(), []
        for number, document in enumerate(asked, 1):
            shots = self._choose_shots(pool, document)
            try:
                found.append((reader.write_prompt(document, shots), reader.list_targets(document)))
            except DocumentError as error:
                raise ConfigError(
                    f"{self.file}: {error.key}: document {number}: {error};"
                    f" its fields are: {', '.join(document)}"
                ) from None
        return found

    def _choose_shots(self, pool: Sequence[Document], document: Document) -> list[Document]:
        """Return the first examples, without the document itself if it is one of their split."""
        named, wanted = self.task.find_shots_split(), self.task.num_fewshot or 0
        same = named is not None and named[1] == self.task.find_asked_split()[1]
        others = (shot for shot in pool if not (same and shot == document))
        shots = list(islice(others, wanted))
        if len(shots) < wanted:
            raise ConfigError(
                f"{self.file}: num_fewshot: {wanted} are wanted, and there are {len(shots)}"
            )
        return shots

    def _read_shots(self) -> list[Document]:
        if not self.task.num_fewshot:
            return []
        if named := self.task.find_shots_split():
            return self._read_split(*named)
        return self.task.fewshot_config.samples or []

    def _read_split(self, key: str, name: str) -> list[Document]:
        splits: Mapping[str, list[str]] = self.task.dataset_kwargs.list_splits()
        if name not in splits:
            raise ConfigError(
                f"{self.file}: {key}: there is no split {name!r}; dataset_kwargs.data_files has:"
                f" {', '.join(splits)}"
            )
        files = [self.file.parent / given for given in splits[name]]
        documents = read_documents(self.task.dataset_path, files)
        if not documents:
            raise ConfigError(f"{self.file}: {key}: the split {name!r} has no row")
        return documents
