"""What the templates of a task of lm-evaluation-harness make of its documents.

As `ConfigurableTask` in `lm_eval/api/task.py` does without a chat template; the whole text is then
one message of a user. A name of a column stands for the column, anything else is a Jinja2 template.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tta_serve.evaluation.harness_files import Document
from tta_serve.evaluation.harness_format import HarnessTask


class DocumentError(ValueError):
    """A document that a key of the task can make nothing of; the message says why."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class DocumentReader:
    """Reads documents by the templates of their task."""

    task: HarnessTask
    columns: frozenset[str]
    """Those of the split that is asked."""

    def write_prompt(self, document: Document, shots: Sequence[Document]) -> str:
        """Return a prompt: the description, examples with their answers, the question."""
        description = self._fill("description", self.task.description, document)
        examples = "".join(map(self._write_example, shots))
        return f"{description}{examples}{self._write_question(document)}"

    def list_targets(self, document: Document) -> list[str]:
        """List the answers that are right."""
        found = self._find_target(document)
        choices = self._list_choices(document)
        if choices is not None:
            if not isinstance(found, int) or not 0 <= found < len(choices):
                raise DocumentError(
                    "doc_to_target",
                    f"wanted is the number of a choice, 0 to {len(choices) - 1}, not {found!r}",
                )
            found = choices[found]
        right = found if isinstance(found, list) else [found]
        if not right or None in right:
            raise DocumentError("doc_to_target", "there is no answer")
        return [str(answer) for answer in right]

    def _write_example(self, document: Document) -> str:
        question, answer = self._write_question(document), self.list_targets(document)[0]
        if not answer:
            return question
        return f"{question}{self.task.target_delimiter}{answer}{self.task.fewshot_delimiter}"

    def _write_question(self, document: Document) -> str:
        text = self._fill("doc_to_text", self.task.doc_to_text, document)
        if not isinstance(text, str) or not text.strip():
            raise DocumentError("doc_to_text", f"wanted is a text, not {text!r}")
        return text

    def _find_target(self, document: Document) -> Any:
        wanted = self.task.doc_to_target
        if not isinstance(wanted, str):
            return wanted
        found = self._fill("doc_to_target", wanted, document)
        if wanted in self.columns:
            return found
        if found.isdigit() and self.task.doc_to_choice is not None:
            return int(found)
        return _read_list(found) if re.fullmatch(r"(?s)\[.*\]", found) else found

    def _list_choices(self, document: Document) -> list[str] | None:
        choices = self.task.doc_to_choice
        if isinstance(choices, str):
            found = self._fill("doc_to_choice", choices, document)
            choices = found if choices in self.columns else _read_list(found)
            if not isinstance(choices, list):
                raise DocumentError("doc_to_choice", f"wanted is a list of texts, not {found!r}")
        return list(choices.values()) if isinstance(choices, dict) else choices

    def _fill(self, key: str, template: str, document: Document) -> Any:
        """Return a column's value, or the text of a template."""
        if template in self.columns:
            return document.get(template)
        try:
            return _compile(template).render(document)
        except Exception as error:  # a template may fail as any program does
            raise DocumentError(key, str(error)) from None


def _read_list(text: str) -> Any:
    """Return the list that a text writes down, or the text if it writes none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _replace_matches(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


@lru_cache(maxsize=64)
def _compile(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["regex_replace"] = _replace_matches
