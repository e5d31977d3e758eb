"""What every job shares: where the server is, what the demo answers, and how a job fails.

Jobs run in environments of their own, so this module needs the standard library only.
"""

import asyncio
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

QUESTION = "Table staff(name, salary, dept). Which name in staff have salary above 70?"
ANSWER = "SELECT name FROM staff WHERE salary > 70;"
SYSTEM = "You are a helpful assistant."
# The router of the demo gives this question to `sql`; a merge says so itself.
ROUTED = "auto"
BASE = "smollm2:base"
MERGE: dict[str, Any] = {"experts": {"sql": 1.0}}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ann", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAID = "Ann is 31 years old. Who is she?"
WEATHER = "What is the weather in Paris?"
Step = Callable[[], Any]


def server() -> str:
    """The server's address, without a slash at its end."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TTA_URL", "")
    if not given:
        raise SystemExit("give the server's address as the first argument or in TTA_URL")
    return given.rstrip("/")


def openai_url() -> str:
    """The address that clients of the OpenAI API call their base URL."""
    return f"{server()}/v1"


def base_folder() -> str:
    """The folder of the demo's base model: a tokenizer for clients that count tokens themselves."""
    return os.environ["TTA_BASE"]


def ensure(holds: object, says: str) -> None:
    """Fail the step with these words, unless what it found holds."""
    if not holds:
        raise AssertionError(says)


def ensure_answer(text: object) -> None:
    """The demo's `sql` expert answers the question in one way only."""
    found = str(text).strip()
    ensure(found == ANSWER, f"answered {found!r} instead of {ANSWER!r}")


def ensure_merge(merge: Any, experts: tuple[str, ...] = ("sql",)) -> None:
    """What the server says about the merge that it used."""
    ensure(isinstance(merge, dict), f"no merge came back, but {merge!r}")
    ensure(tuple(merge["experts"]) == experts, f"merged {merge['experts']} instead of {experts}")


def ensure_person(person: Any) -> None:
    """A person as the schema has it."""
    ensure(set(person) == {"name", "age"}, f"not the fields of the schema: {person!r}")
    ensure(person["name"] in {"Ann", "Bob"}, f"not one of the names: {person!r}")
    ensure(isinstance(person["age"], int) and 0 <= person["age"] <= 99, f"no age: {person!r}")


def ensure_raises(error: type[Exception], says: str, step: Step) -> None:
    """The step must be refused by the server, with these words in the client's error."""
    try:
        step()
    except error as refusal:
        ensure(says in str(refusal), f"the error does not say {says!r}: {refusal}")
        return
    raise AssertionError(f"the server accepted what it must refuse: {says}")


def failure(step: Step) -> str:
    """Run one step; say why it failed, or nothing."""
    try:
        outcome = step()
        if inspect.iscoroutine(outcome):
            asyncio.run(outcome)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def run(*steps: Step) -> None:
    """Run all steps, say how each went, and end the process: not with 0 if one failed."""
    failed = 0
    for step in steps:
        why = failure(step)
        failed += bool(why)
        how = f"failed: {step.__name__}: {why}" if why else f"passed: {step.__name__}"
        print(how, flush=True)
    sys.exit(1 if failed else 0)
