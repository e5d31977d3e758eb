"""Instructor: one model class, filled by tools, by JSON schemas, and piece by piece in a stream."""

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel, Field

from tests.clients import asked


class Person(BaseModel):
    """A person."""

    name: Literal["Ann", "Bob"]
    age: int = Field(ge=0, le=99)


def client(mode: instructor.Mode) -> Any:
    """Instructor around the openai client."""
    inner = openai.OpenAI(base_url=asked.openai_url(), api_key="unused", max_retries=0)
    return instructor.from_openai(inner, mode=mode)


def options(**more: Any) -> dict[str, Any]:
    """One person, found greedily."""
    messages = [{"role": "user", "content": asked.SAID}]
    return {
        "model": asked.ROUTED,
        "messages": messages,
        "max_tokens": 60,
        "temperature": 0,
        "max_retries": 0,
        "extra_body": {"merge": {"policy": "base"}},
        **more,
    }


def filled(mode: instructor.Mode) -> None:
    """A person, and the server's answer as it came."""
    create = client(mode).chat.completions.create_with_completion
    person, completion = create(response_model=Person, **options())
    asked.ensure_person(person.model_dump())
    asked.ensure_merge(completion.merge, ())


def by_tools() -> None:
    """The arguments of one named tool."""
    filled(instructor.Mode.TOOLS)


def by_strict_tools() -> None:
    """The same, with strict schemas."""
    filled(instructor.Mode.TOOLS_STRICT)


def by_schema() -> None:
    """An answer in a JSON schema."""
    filled(instructor.Mode.JSON_SCHEMA)


def in_parts() -> None:
    """A person that grows while it is streamed."""
    create = client(instructor.Mode.JSON_SCHEMA).chat.completions.create_partial
    parts = list(create(response_model=Person, **options()))
    asked.ensure(len(parts) > 1, f"{len(parts)} parts are no stream")
    asked.ensure_person(parts[-1].model_dump())


def tool_in_parts() -> None:
    """The same, out of the arguments of a tool."""
    create = client(instructor.Mode.TOOLS).chat.completions.create_partial
    parts = list(create(response_model=Person, **options()))
    asked.ensure_person(parts[-1].model_dump())


if __name__ == "__main__":
    asked.run(by_tools, by_strict_tools, by_schema, in_parts, tool_in_parts)
